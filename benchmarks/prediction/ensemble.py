"""Ensembles of finished runs beside their members: docs/benchmarks/ensemble.json.

python -m benchmarks.prediction.ensemble --runs RUN RUN RUN --distilled RUN

The weights are chosen on validation. Test is read once for every system.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, Scalar, arguments, results_of, row_of, started, write_benchmark
from benchmarks.statistics import compared, mean_draws
from llm_influence.evaluation.metrics import ModelRecommender, evaluate, ndcg_of_rows
from llm_influence.modeling.model import InfluenceModel
from llm_influence.numerics import percentiles
from llm_influence.run import Run

PARSER = arguments(
    __doc__,
    "ensemble",
    threads=None,
    runs={"nargs": "+", "required": True, "help": "folders of finished runs on one split"},
    distilled={"nargs": "+", "default": [], "help": "runs that the ensemble taught"},
)


def measured(model: InfluenceModel, run: Run) -> dict[str, object]:
    """NDCG@10 on validation and test, the ranks of test, and the seconds to rank test."""
    recommender, config = ModelRecommender(model), run.config.evaluation
    validation, _ = evaluate(recommender, run.split.validation, config)
    begun = time.perf_counter()
    _, ranks = evaluate(recommender, run.split.test, config)
    seconds = time.perf_counter() - begun
    name = f"ndcg@{config.cutoff}"
    return {"validation": validation[name], "ranks": ranks.tolist(), "seconds": seconds}


def training(folder: str) -> tuple[float, list[dict[str, Scalar]]]:
    """Seconds of training, and the entries on averaged weights."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    return metrics["seconds"], [e for e in metrics["history"] if "averaged" in e]


def main(options: argparse.Namespace) -> None:
    """Measure members, ensembles and distilled models, and write the file."""
    results = results_of(options, runs=options.runs, distilled=options.distilled)
    names = [*options.runs, *options.distilled]
    runs = {name: Run.open(name) for name in names}
    first = runs[names[0]]
    measures = {
        f"member {n}": results.keep(name, lambda name=name: measured(runs[name].model, runs[name]))
        for n, name in enumerate(options.runs)
    }
    members = list(measures)
    ensemble = InfluenceModel.ensemble([runs[name].model for name in options.runs])
    measures["ensemble, equal weights"] = results.keep("equal", lambda: measured(ensemble, first))

    def weighted() -> dict[str, object]:
        begun = time.perf_counter()
        weights = ensemble.choose_weights(first.split.validation)
        seconds = time.perf_counter() - begun
        return measured(ensemble, first) | {"weights": list(weights), "choose_seconds": seconds}

    measures["ensemble"] = results.keep("weighted", weighted)
    for n, name in enumerate(options.distilled):
        measures[f"distilled {n}"] = results.keep(
            name, lambda name=name: measured(runs[name].model, runs[name])
        )
    cutoff, users = first.config.evaluation.cutoff, first.split.test.users
    scores = {name: ndcg_of_rows(np.array(m["ranks"]), cutoff) for name, m in measures.items()}
    draws = dict(zip(scores, mean_draws(np.stack(list(scores.values())), users), strict=True))
    trained = {name: training(name) for name in names}
    seconds = [trained[name][0] for name in options.runs]
    costs = dict(zip(members, seconds, strict=True))
    costs |= {f"distilled {n}": trained[f][0] for n, f in enumerate(options.distilled)}
    rows: list[Row] = [
        row_of(
            name,
            "next item",
            f"ndcg@{cutoff}",
            float(scores[name].mean()),
            *percentiles(draws[name]),
            validation=measure["validation"],
            training_seconds=costs.get(name, sum(seconds)),
            test_seconds=measure["seconds"],
        )
        for name, measure in measures.items()
    ]
    rows += [
        row_of(name, "averaged weights", key, value, used=entry["used"], averaged=entry["averaged"])
        for name, folder in zip(members, options.runs, strict=True)
        for entry in trained[folder][1]
        for key, value in entry.items()
        if key not in {"averaged", "used", "step"}
    ]
    best = max(members, key=lambda name: measures[name]["validation"])
    (gain, low, high), _ = compared(
        *(float(scores[n].mean()) for n in ("ensemble", best)), draws["ensemble"], draws[best]
    )
    figures: dict[str, Scalar] = {
        f"ensemble_ndcg{cutoff}": float(scores["ensemble"].mean()),
        f"ensemble_equal_ndcg{cutoff}": float(scores["ensemble, equal weights"].mean()),
        f"member_ndcg{cutoff}": float(np.mean([scores[name].mean() for name in members])),
        f"best_member_ndcg{cutoff}": float(scores[best].mean()),
        "gain_over_best_member": gain,
        "gain_low": low,
        "gain_high": high,
        "training_seconds": sum(seconds),
        "test_seconds": measures["ensemble"]["seconds"],
        "choose_seconds": measures["ensemble"]["choose_seconds"],
    }
    if options.distilled:
        taught = [scores[f"distilled {n}"].mean() for n in range(len(options.distilled))]
        figures[f"distilled_ndcg{cutoff}"] = float(np.mean(taught))
    write_benchmark(
        options.output,
        name="ensemble",
        protocol={
            "members": len(members),
            "weights": ", ".join(f"{w:.3f}" for w in measures["ensemble"]["weights"]),
            "chosen_by": "likelihood of the validation items; best member by validation NDCG",
            "measured": "test, once; intervals by drawing users",
        },
        rows=rows,
        figures=figures,
        seeds=[runs[name].config.train.seed for name in options.runs],
    )


if __name__ == "__main__":
    main(started(PARSER))
