"""Does the analysis of influence tables recover a known process?

    python -m benchmarks.analysis.planted --model runs/benchmarks/planted_truth/model

Analyses tables of exact true influences, and tables of a trained model's explanations (the model of
`benchmarks.faithfulness.planted_truth`, for other users). Then the process changes at a date: a
copy of the model is trained on, briefly, with what came after it, and each model explains the users
of its own time. Audits fair and unfair processes, and explanations of a fraud detector.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.analysis.planted_audit import PROTOCOL as AUDIT
from benchmarks.analysis.planted_audit import audit_figures, audit_rows, results_of_audits
from benchmarks.analysis.planted_fraud import PROTOCOL as FRAUD
from benchmarks.analysis.planted_fraud import fraud_figures, fraud_rows
from benchmarks.analysis.planted_tables import is_changed, write_explained, write_truth
from benchmarks.faithfulness.planted_truth import PROCESS, run_config
from benchmarks.harness import Row, arguments, row_of, started, write_benchmark
from benchmarks.training_runs import train_whole
from llm_influence.analysis.dynamics import analyze_dynamics
from llm_influence.analysis.factors import analyze_factors
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.config.analyses import DynamicsOptions, FactorOptions
from llm_influence.config.data import DriftConfig, PlantedConfig
from llm_influence.datasets.generating_process import GeneratingProcess
from llm_influence.datasets.planted import PlantedTruth, make_planted
from llm_influence.modeling.model import InfluenceModel

MATCH = "match:cluster"
DRIFT = DriftConfig(
    date=date(2025, 6, 30), behaviors={"purchase": 0.5, "click": 1.0, "dismiss": -0.5}
)
"""From a Monday on, a purchase counts half and a click twice."""
WINDOWS = {"week": 7, "day": 1}
PARSER = arguments(
    __doc__,
    "analysis_planted",
    model={"type": Path, "required": True, "help": "the model of planted_truth"},
    method="leave_one_out",
    seed=(11, "of the process that the model was trained on"),
    users=2000,
    updated_users=(20_000, "of the changing process"),
    epochs=(1.0, "of the training after the date"),
    fair_seeds=(500, "fair logs of each kind"),
    unfair_seeds=(100, "unfair logs of each kind"),
)


def factor_rows(tables: Path, process: GeneratingProcess, system: str) -> Iterator[Row]:
    """Weights of behaviours by `analyze factors`, beside the true ones."""
    begun = time.perf_counter()
    with InfluenceView(tables) as view:
        records = analyze_factors(view, FactorOptions(match=MATCH)).tables["weights"].records
    more = {"seconds": time.perf_counter() - begun}
    weights = process.weights / np.abs(process.weights).max()
    true = dict(zip(process.behaviors, weights, strict=True))
    for record in records:
        name, ends = f"weight of {record['behavior']}", (record["low"], record["high"])
        yield row_of(system, "factors", name, record["weight"], *ends, **more)
        yield row_of(system, "factors", f"true {name}", float(true[record["behavior"]]), **more)
    pairs = np.array([(record["weight"], true[record["behavior"]]) for record in records])
    rank = float(stats.spearmanr(*pairs.T).statistic)
    # Relative to the largest weight, so that a distractor's, which is zero, counts too.
    error = float(np.abs(pairs[:, 0] - pairs[:, 1]).max())
    yield row_of(system, "factors", "behavior_rank_correlation", rank, **more)
    yield row_of(system, "factors", "weight_error", error, **more)


def decay_rows(tables: Path, process: GeneratingProcess, system: str) -> Iterator[Row]:
    """Half-lives by `analyze dynamics`, beside the true one."""
    begun = time.perf_counter()
    with InfluenceView(tables) as view:
        options = DynamicsOptions(by=("behavior",), match=MATCH)
        records = analyze_dynamics(view, options).tables["half_lives"].records
    more = {"seconds": time.perf_counter() - begun}
    true, errors = process.half_life / 3600, []
    weights = dict(zip(process.behaviors, process.weights, strict=True))
    for record in records:
        life, name = record["half_life_hours"], record["level"] or "all events"
        print(f"{system}: {name}: {record['form']}, {life} h")
        if life is None:
            continue
        metric, ends = f"half-life of {name}, hours", (record["low"], record["high"])
        yield row_of(system, "decay", metric, life, *ends, **more)
        if record["level"] and weights[name]:
            errors.append(abs(life / true - 1))
    yield row_of(system, "decay", "true half-life, hours", true, **more)
    yield row_of(system, "decay", "half_life_error", max(errors), **more)


def drift_rows(tables: Path, process: GeneratingProcess, system: str) -> Iterator[Row]:
    """Distance between the date and the changes found of the behaviours that changed."""
    old = dict(zip(process.behaviors, process.weights, strict=True))
    changed = sorted(name for name in old if old[name] != DRIFT.behaviors.get(name, 0.0))
    for window, days in WINDOWS.items():
        begun = time.perf_counter()
        with InfluenceView(tables) as view:
            options = DynamicsOptions(by=("behavior",), window=window, match=MATCH)
            analysis = analyze_dynamics(view, options)
        task, more = f"drift, windows of {window}", {"seconds": time.perf_counter() - begun}
        changes = analysis.tables["changes"].records if "changes" in analysis.tables else []
        covered = len({row["window"] for row in analysis.tables["drift"].records})
        off = {}
        for name in changed:
            dates = [date.fromisoformat(c["window"]) for c in changes if c["level"] == name]
            away = [abs((day - DRIFT.date).days) // days for day in dates]
            yield row_of(system, task, f"changes found of {name}", len(away), **more)
            off[name] = min(away, default=covered)  # a change not found is as far off as can be
        behaviors = [c["level"] for c in changes if c["factor"] == "behavior"]
        false = len(behaviors) - sum(name in behaviors for name in changed)
        yield row_of(system, task, "drift_windows_off", max(off.values()), **more)
        yield row_of(system, task, "further changes of behaviours", false, **more)


def updated(options: argparse.Namespace, config: PlantedConfig) -> InfluenceModel:
    """The model, trained on with users of the changed process only."""
    log, truth = make_planted(config.model_copy(update={"users": options.updated_users}))
    later = np.array([is_changed(truth, user) for user in range(len(log))])
    model = InfluenceModel.from_pretrained(options.model)
    rates = {"epochs": options.epochs, "batch_size": 128, "learning_rate": 3e-3}
    settings = argparse.Namespace(**rates, seed=options.seed)
    with tempfile.TemporaryDirectory() as place:
        log = log.prefix(np.where(later, log.lengths, 0))
        train_whole(model, run_config(settings, Path(place)), log, Path(place))
    return model.eval()


def figures_of(rows: list[Row]) -> Row:
    """Figures of the model's tables, and with `_exact` those of the truth's; drift by weeks."""
    tasks = {
        "behavior_rank_correlation": "factors",
        "weight_error": "factors",
        "half_life_error": "decay",
        "drift_windows_off": "drift, windows of week",
    }
    return {
        f"{row['metric']}{'_exact' * (row['system'] == 'truth')}": float(row["value"])
        for row in rows
        if tasks.get(row["metric"]) == row["task"]
    }


def main(options: argparse.Namespace) -> None:
    """Generate, explain, analyse, compare with the process, write."""
    # Users of the same process who were not in training.
    config = PlantedConfig(seed=options.seed, users=options.users, user_seed=1, **PROCESS)
    _, truth = make_planted(config)
    drifting = config.model_copy(update={"drift": DRIFT})
    with tempfile.TemporaryDirectory() as place:
        rows = list(measured(options, truth, Path(place)))
        rows += drift_measured(options, drifting, Path(place))
    rows += audit_rows(results_of_audits(options), options.fair_seeds, options.unfair_seeds)
    rows += fraud_rows(options.work / "fraud")
    write_benchmark(
        options.output,
        name="analysis_planted",
        protocol={
            "process": config.model_dump(mode="json"),
            "truth": "exact influence of every event, no model",
            "model": f"{options.method} of the model of planted_truth.json",
            "drift": DRIFT.model_dump(mode="json"),
            "model of the drift": "before its date the model; after it a copy trained for "
            f"{options.epochs:g} epochs with those of {options.updated_users} users who end there",
            "half_life_error": "largest relative error of a behaviour's half-life",
            "drift_windows_off": "weeks between the date and the change found, of the behaviour "
            "whose change is found farthest off",
            "audit": AUDIT,
            "audit_seeds": {"fair": options.fair_seeds, "unfair": options.unfair_seeds},
            "fraud": FRAUD,
            "weight_error": "largest distance of a behaviour's weight from the process's, the "
            "largest weight being 1",
        },
        rows=rows,
        figures=figures_of(rows) | audit_figures(rows) | fraud_figures(rows),
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
    """Rows of a process that changes, of the truth's tables and of the models'."""
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
    main(started(PARSER))
