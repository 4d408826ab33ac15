"""Does the analysis of influence tables find the law of a planted log?

    python -m benchmarks.analysis.planted --model runs/planted_truth/model

Asks tables of exact true influences, and tables that a trained model's explanations make (the
model of benchmark_planted_truth.py, for users it never saw). Then the law changes at a date: a
copy of the model is trained on, briefly, with what came after it, and each model explains the users
of its own time. Audits fair and unfair laws, a hundred of each. Writes
docs/benchmarks/analysis_planted.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.analysis.planted_audit import PROTOCOL as AUDIT
from benchmarks.analysis.planted_audit import audit_figures, audit_rows
from benchmarks.analysis.planted_fraud import PROTOCOL as FRAUD
from benchmarks.analysis.planted_fraud import fraud_figures, fraud_rows
from benchmarks.analysis.planted_tables import is_changed, write_explained, write_truth
from benchmarks.faithfulness.planted_truth import LAW, run_config
from benchmarks.harness import write_benchmark
from benchmarks.whole_log import train
from llm_influence.analysis.dynamics import DynamicsOptions, analyze_dynamics
from llm_influence.analysis.factors import FactorOptions, analyze_factors
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.config.synthetic import DriftConfig, PlantedConfig
from llm_influence.datasets.generating_process import GeneratingProcess
from llm_influence.datasets.planted import PlantedTruth, make_planted
from llm_influence.modeling.model import InfluenceModel

MATCH = "match:cluster"
DRIFT = DriftConfig(
    date=date(2025, 6, 30), behaviors={"purchase": 0.5, "click": 1.0, "dismiss": -0.5}
)
"""From a Monday on, a purchase counts half and a click twice."""
WINDOWS = {"week": 7, "day": 1}
Row = dict[str, str | float]


def factor_rows(tables: Path, law: GeneratingProcess, system: str) -> Iterator[Row]:
    """Weights of behaviours as `analyze factors` finds them, against the law's."""
    begun = time.perf_counter()
    with InfluenceView(tables) as view:
        found = analyze_factors(view, FactorOptions(match=MATCH)).tables["weights"].records
    seconds = time.perf_counter() - begun
    row = {"system": system, "task": "factors", "seconds": seconds}
    true = dict(zip(law.behaviors, law.weights / np.abs(law.weights).max(), strict=True))
    for record in found:
        interval = {"low": record["low"], "high": record["high"]}
        name = f"weight of {record['behavior']}"
        yield {**row, "metric": name, "value": record["weight"], **interval}
        yield {**row, "metric": f"true {name}", "value": float(true[record["behavior"]])}
    pairs = np.array([(record["weight"], true[record["behavior"]]) for record in found])
    rank = float(stats.spearmanr(*pairs.T).statistic)
    # Relative to the largest weight, so that a distractor's, which is zero, counts too.
    error = float(np.abs(pairs[:, 0] - pairs[:, 1]).max())
    yield {**row, "metric": "behavior_rank_correlation", "value": rank}
    yield {**row, "metric": "weight_error", "value": error}


def decay_rows(tables: Path, law: GeneratingProcess, system: str) -> Iterator[Row]:
    """Half-lives as `analyze dynamics` finds them, against the law's."""
    begun = time.perf_counter()
    with InfluenceView(tables) as view:
        options = DynamicsOptions(by=("behavior",), match=MATCH)
        found = analyze_dynamics(view, options).tables["half_lives"].records
    row = {"system": system, "task": "decay", "seconds": time.perf_counter() - begun}
    true, errors = law.half_life / 3600, []
    for record in found:
        life, name = record["half_life_hours"], record["level"] or "all events"
        if life is None:
            print(f"{system}: {name}: {record['form']}")
            continue
        print(f"{system}: {name}: {record['form']}, {life:.2f} h")
        interval = {"low": record["low"], "high": record["high"]}
        yield {**row, "metric": f"half-life of {name}, hours", "value": life, **interval}
        if record["level"] and dict(zip(law.behaviors, law.weights, strict=True))[name]:
            errors.append(abs(life / true - 1))
    yield {**row, "metric": "true half-life, hours", "value": true}
    yield {**row, "metric": "half_life_error", "value": max(errors)}


def drift_rows(tables: Path, law: GeneratingProcess, system: str) -> Iterator[Row]:
    """How far from the date the changes of the behaviours that changed were found."""
    changed = {n for n, old in zip(law.behaviors, law.weights, strict=True) if old != _after(n)}
    for window, days in WINDOWS.items():
        begun = time.perf_counter()
        with InfluenceView(tables) as view:
            options = DynamicsOptions(by=("behavior",), window=window, match=MATCH)
            analysis = analyze_dynamics(view, options)
        row = {"system": system, "task": f"drift, windows of {window}"}
        row["seconds"] = time.perf_counter() - begun
        changes = analysis.tables["changes"].records if "changes" in analysis.tables else []
        off = {}
        for name in sorted(changed):
            found = [date.fromisoformat(c["window"]) for c in changes if c["level"] == name]
            away = [abs((day - DRIFT.date).days) // days for day in found]
            yield {**row, "metric": f"changes found of {name}", "value": len(away)}
            # What was not found is as far off as the whole time covered.
            off[name] = min(
                away, default=len({r["window"] for r in analysis.tables["drift"].records})
            )
        behaviors = [c["level"] for c in changes if c["factor"] == "behavior"]
        false = len(behaviors) - sum(name in behaviors for name in changed)
        yield {**row, "metric": "drift_windows_off", "value": max(off.values())}
        yield {**row, "metric": "further changes of behaviours", "value": false}


def _after(behavior: str) -> float:
    return DRIFT.behaviors.get(behavior, 0.0)


def updated(options: argparse.Namespace, config: PlantedConfig) -> InfluenceModel:
    """The model, trained on with users of the changed law alone."""
    log, truth = make_planted(config.model_copy(update={"users": options.updated_users}))
    later = np.array([is_changed(truth, user) for user in range(len(log))])
    model = InfluenceModel.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as place:
        fitted = argparse.Namespace(
            output=Path(place),
            epochs=options.epochs,
            batch_size=128,
            learning_rate=3e-3,
            seed=options.seed,
        )
        log = log.prefix(np.where(later, log.lengths, 0))
        train(model, run_config(fitted), log, fitted.output)
    return model.eval()


def dynamics_figures(rows: list[Row]) -> dict[str, float]:
    """Of the model's tables, and with `_exact` of the truth's; drift by weeks."""
    asked = {"half_life_error": "decay", "drift_windows_off": "drift, windows of week"}
    return {
        metric + suffix: float(row["value"])
        for system, suffix in (("model", ""), ("truth", "_exact"))
        for metric, task in asked.items()
        for row in rows
        if (row["system"], row["task"], row["metric"]) == (system, task, metric)
    }


def factor_figures(rows: list[Row]) -> dict[str, float]:
    """Of the model's tables, and with `_exact` of the truth's."""
    found = {}
    for metric in ("behavior_rank_correlation", "weight_error"):
        for system, key in (("model", metric), ("truth", f"{metric}_exact")):
            (found[key],) = [
                float(row["value"])
                for row in rows
                if row["metric"] == metric and row["system"] == system
            ]
    return found


def main(options: argparse.Namespace) -> None:
    """Plant, explain, analyse, hold against the law, write."""
    torch.set_num_threads(options.threads)
    # Users of the same law whom the model was not trained on.
    config = PlantedConfig(seed=options.seed, users=options.users, user_seed=1, **LAW)
    _, truth = make_planted(config)
    drifting = config.model_copy(update={"drift": DRIFT})
    with tempfile.TemporaryDirectory() as place:
        rows = list(measured(options, truth, Path(place)))
        rows += drift_measured(options, drifting, Path(place))
    rows += audit_rows(options.audits, options.fair_seeds, options.audit_seeds)
    rows += fraud_rows(options.fraud)
    for row in rows:
        print(f"{row['system']:8}{row['metric']:32}{row['value']:10.4f}")
    write_benchmark(
        options.json,
        name="analysis_planted",
        protocol={
            "law": config.model_dump(mode="json"),
            "truth": "exact influence of every event, no model",
            "model": f"{options.method} of the model of planted_truth.json",
            "drift": DRIFT.model_dump(mode="json"),
            "model of the drift": "before its date the model; after it a copy trained for "
            f"{options.epochs:g} epochs with those of {options.updated_users} users who end there",
            "half_life_error": "largest relative error of a behaviour's half-life",
            "drift_windows_off": "weeks between the date and the change found, of the behaviour "
            "whose change is found farthest off",
            "audit": AUDIT,
            "audit_seeds": {"fair": options.fair_seeds, "unfair": options.audit_seeds},
            "fraud": FRAUD,
            "weight_error": "largest distance of a behaviour's weight from the law's, the largest "
            "weight being 1",
        },
        rows=rows,
        figures=factor_figures(rows)
        | dynamics_figures(rows)
        | audit_figures(rows)
        | fraud_figures(rows),
        seeds=[options.seed],
    )


def measured(options: argparse.Namespace, truth: PlantedTruth, folder: Path) -> Iterator[Row]:
    """All rows, of the truth's tables and of the model's."""
    exact = write_truth(truth, folder / "truth")
    yield from factor_rows(exact, truth.process, "truth")
    yield from decay_rows(exact, truth.process, "truth")
    explainer = Explainer(
        InfluenceModel.from_pretrained(options.model), options.method, fidelity_masks=0
    )
    tables = write_explained(truth, explainer, folder / "model")
    yield from factor_rows(tables, truth.process, "model")
    yield from decay_rows(tables, truth.process, "model")


def drift_measured(
    options: argparse.Namespace, config: PlantedConfig, folder: Path
) -> Iterator[Row]:
    """Rows of a law that changes, of the truth's tables and of the models'."""
    _, truth = make_planted(config)
    yield from drift_rows(write_truth(truth, folder / "drift_truth"), truth.process, "truth")
    # Trained on users of another seed than those who are explained.
    model = updated(options, config.model_copy(update={"user_seed": 2}))
    before, after = (
        Explainer(one, options.method, fidelity_masks=0)
        for one in (InfluenceModel.from_pretrained(options.model), model)
    )
    tables = write_explained(truth, before, folder / "drift_model", after)
    yield from drift_rows(tables, truth.process, "model")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--method", default="leave_one_out")
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/analysis_planted.json"))
    parser.add_argument("--seed", type=int, default=11, help="of the law the model was trained on")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--updated-users", type=int, default=20_000, help="of the changing law")
    parser.add_argument("--epochs", type=float, default=1, help="of the training after the date")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--audits", type=Path, default=Path("runs/planted_audit"))
    parser.add_argument("--fair-seeds", type=int, default=500)
    parser.add_argument("--audit-seeds", type=int, default=100)
    parser.add_argument("--fraud", type=Path, default=Path("runs/fraud"), help="its run folder")
    main(parser.parse_args())
