"""A penalty and an exclusion rule against known unfairness, and their cost: fairness.json.

    python -m benchmarks.analysis.fairness [--seeds 0 1 2]

A log by an unfair process: the scores of a quarter of the items are shifted for users of one group.
Their histories show it, and what comes next is as unfair as the process. A small recurrent model is
trained with the group in its template, with `train.fairness` at several weights, and with a
template without the group (the exclusion rule). Other users of the same process then get
recommendations, explanations and an audit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    Row,
    arguments,
    results_of,
    row_of,
    started,
    write_benchmark,
)
from llm_influence.analysis.audit import analyze_audit
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.batch.explain import explain_batch
from llm_influence.batch.studies import run_fairness_test
from llm_influence.config.analyses import AuditOptions
from llm_influence.config.data import PlantedConfig
from llm_influence.config.run import RunConfig
from llm_influence.datasets.planted import make_planted
from llm_influence.influence.table_files import read_fairness_test
from llm_influence.run import Run
from llm_influence.training.finetune import finetune
from llm_influence.utils import write_text

PROCESS = {
    "clusters": 4,
    "temperature": 0.6,
    "max_events": 12,
    "group_share": 0.4,
    "group_shift": 0.8,
}
AS_IS, RULE = "as is", "template without the group"
PENALTIES = {f"penalty {weight:g}": weight for weight in (1.0, 10.0)}
SYSTEMS = (AS_IS, *PENALTIES, RULE)
FAVOURED = "cluster 0 recommended"
METRICS = (
    *("ndcg@10", "flips", "log-odds moved by the group", "gap", "gap given history"),
    *("audit says unfair", "p_value"),
)
PARSER = arguments(
    __doc__, "fairness", seeds=(0, 1, 2), users=2000, audited=400, width=64, epochs=15.0
)


def run_config(options: argparse.Namespace, seed: int, system: str) -> RunConfig:
    """One run: only the template or the penalty differ."""
    place = options.work / f"seed_{seed}"
    line = "" if system == RULE else 'history: "{user.group}"\n'
    template = place / f"{'plain' if system == RULE else 'grouped'}.yaml"
    write_text(
        template, f'name: {template.stem}\n{line}event: "{{item}}"\nadded: [behavior, gap]\n'
    )
    files = {name: str(place / "log" / f"{name}.parquet") for name in ("events", "items", "users")}
    return RunConfig.model_validate(
        {
            "output": str(place / system.replace(" ", "_")),
            "data": {"source": files["events"], "items": files["items"], "users": files["users"]},
            "rendering": {"template": str(template), "max_events": PROCESS["max_events"]},
            "model": {
                "backbone": "gru",
                "recurrent": {"width": options.width, "layers": 1},
                "adapter": {"kind": "full"},
                "behavior_head": {"weight": 0.0},
            },
            "train": {
                "epochs": options.epochs,
                "batch_size": 64,
                "learning_rate": 3e-3,
                "item_learning_rate": 3e-3,
                "patience": 99,
                "precision": "fp32",
                "seed": seed,
                "fairness": {"features": ["group"], "weight": PENALTIES[system]}
                if system in PENALTIES
                else {},
            },
            "evaluation": {"exclude_seen": False},
        }
    )


def measured(options: argparse.Namespace, seed: int, system: str) -> dict[str, float]:
    """Train one system, unless it is there, and audit its predictions for other users."""
    config = run_config(options, seed, system)
    folder = Path(config.output)
    if not (folder / "metrics.json").exists():
        finetune(config, resume=True)
    run = Run.open(folder)
    _, others = make_planted(planted(seed, options.audited, user_seed=1))
    explainer = Explainer(run.model, "leave_one_out", fidelity_masks=0)
    tables = folder / "influence"
    explain_batch(explainer, others.log, tables, progress=False)
    run_fairness_test(run.model, others.log, ["group"], tables, progress=False)
    test = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    return audited(tables) | {"ndcg@10": float(test["items"]["ndcg@10"])}


def audited(tables: Path) -> dict[str, float]:
    """The audit's verdict, from the tables alone."""
    with InfluenceView(tables) as view:
        found = analyze_audit(view, AuditOptions(("user:group",)))
    (verdict,) = found.tables["verdict"].records
    gaps = [row for row in found.tables["differences"].records if row["measure"] == FAVOURED]
    rows = read_fairness_test(tables / "fairness_test.parquet")
    moved = np.abs(rows["log_odds_other"].to_numpy() - rows["log_odds"].to_numpy())
    return {
        "flips": verdict["changed"],
        "log-odds moved by the group": float(moved.mean()),
        "gap": -gaps[0]["difference"] if gaps else 0.0,  # of group b, as the first group shown is a
        "gap given history": -gaps[0]["given_history"] if gaps else 0.0,
        "audit says unfair": float(verdict["unfair"]),
        "p_value": verdict["p_value"],
    }


def planted(seed: int, users: int, **options: int) -> PlantedConfig:
    """The unfair process."""
    return PlantedConfig(seed=seed, users=users, **PROCESS, **options)


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """All systems and seeds."""
    names = ("users", "audited", "width", "epochs")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    for seed in options.seeds:
        log = options.work / f"seed_{seed}" / "log"
        if not (log / "process.json").exists():
            make_planted(planted(seed, options.users), folder=log)
        for system in SYSTEMS:
            values = results.keep(
                f"{system}, seed {seed}", lambda n=seed, s=system: measured(options, n, s)
            )
            for name in METRICS:
                yield row_of(system, "planted unfairness", name, values[name], seed=seed)


def main(options: argparse.Namespace) -> None:
    """Measure, average over seeds, write."""
    rows, figures = list(rows_of(options)), {}
    for name, system in (("as_is", AS_IS), ("penalty", list(PENALTIES)[-1]), ("rule", RULE)):
        for key, metric in (
            ("flips", "flips"),
            ("gap_given_history", "gap given history"),
            ("ndcg", "ndcg@10"),
        ):
            own = [r["value"] for r in rows if (r["system"], r["metric"]) == (system, metric)]
            figures[f"{key}_{name}"] = float(np.mean(own))
    write_benchmark(
        options.output,
        name="fairness",
        protocol={
            "process": PROCESS,
            "users": options.users,
            "audited_users": options.audited,
            "model": f"gru, width {options.width}, {options.epochs} epochs",
            "gap": "share of group b who get an item of the favoured cluster first, less that of a",
            "flips": "share of users whose first recommendation changes with the group alone",
        },
        rows=rows,
        figures=figures,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
