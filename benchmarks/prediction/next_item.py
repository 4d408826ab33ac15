"""Next-item prediction beside its peers: prediction_ml100k.json and prediction_beauty.json.

    python -m benchmarks.prediction.next_item --task ml100k [--stage export|peers|ours|report]

Without --stage all four are done in that order; finished runs are not repeated.
docs/results/prediction.md says what is equal for all systems.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.comparison import (
    System,
    earlier_systems,
    of_ranks,
    peer_versions,
    read_systems,
    report,
    seeds_of,
)
from benchmarks.data.beauty import write_tables
from benchmarks.harness import OUTPUT, Row, arguments, started, write_benchmark
from benchmarks.peer_runs import (
    OURS,
    Bench,
    Budget,
    make_environment,
    save_column,
    save_result,
)
from benchmarks.peers.settings import CLOSED_FORM, RANKING, points
from benchmarks.prediction import closed_form
from benchmarks.statistics import Floats
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import split_log
from llm_influence.datasets.public import open_data
from llm_influence.evaluation.baselines import ItemKNN, Popularity, best_item_knn
from llm_influence.evaluation.metrics import evaluate, ranking_metrics

NDCG = "ndcg@10"
BUDGET = Budget(8, tuning_seconds=600.0, trial_seconds=150.0, final_seconds=450.0, patience=10)
STAGES = ("export", "peers", "ours", "report")
CONFIGS = {"ml100k": "configs/movielens_100k.yaml", "beauty": "configs/amazon_beauty.yaml"}
PEERS = (*RANKING, *CLOSED_FORM)
ENSEMBLE = f"{OURS}_ensemble"
"""Its runs are not made here: any folder of this name with the files of a run is reported."""
SYSTEMS = (OURS, ENSEMBLE, *PEERS, "item-knn", "popularity")
TWICE_AN_EPOCH = ["--train.validations_per_epoch=2", "--train.patience=6"]
"""Of ours on ML-100K: epochs are few and long, so the curve begins within the first one."""
CURVES_FROM = (30, 60)
"""Seconds of training from which on the curves are compared."""

PROTOCOL = {
    "split": "leave-one-out: a user's last event is tested, the one before it validates",
    "candidates": "all items of the catalogue but those of the history (full ranking)",
    "equal_scores": "ordered by row of the catalogue, the same for all",
    "untrained_items": "a peer's items without a training event come last",
    "trained_on": "the training events alone; the history of a test row includes validation",
    "epoch": "chosen on validation NDCG@10 by every system, ours on ML-100K among half epochs; "
    "test ranked once, by that epoch",
    "peers": "setting chosen on validation, seed 0, the same budget of training seconds each",
    "closed_form": "linear and ease: settings tried within the same seconds, their number is free; "
    "every decay of the history at reading is tried on each solution",
    "measured": "earlier: kept from the file that was there before; the answers by user are gone, "
    "so such a system has no interval against ours",
    "core": "one core, one thread, every system",
    "precision": "peers: fp32; ours: train.precision auto, bf16 where the chip computes it",
    "seconds": "training until the run stopped, without imports, data and validation; of the "
    "peers, item-kNN and popularity: seconds of the processor; of ours: clock time of building the "
    "model (fit of the memory, text vectors) and of training without validations, an epoch's "
    "being its share of the steps",
    "seconds_to_best": "the same until the chosen epoch",
    "interval": "value, low, high over seeds: mean and Student's 95% interval; against the best "
    "peer: 10,000 paired bootstrap draws of users, a user's NDCG being the mean over seeds",
}

PARSER = arguments(
    __doc__,
    "prediction",
    seeds=(0, 1, 2),
    task={"choices": CONFIGS, "default": "ml100k"},
    stage={"choices": STAGES, "help": "default: all"},
    systems=(list(PEERS), "peers to run"),
    config=(Path, "our configuration; default: configs/"),
    shared=(Path("../shared/data"), "folder of the Amazon files"),
    environment=(Path(".peers"), "the peers' virtual environment"),
    pin=(0, "the core that every run is pinned to"),
    **BUDGET.options(),
)


def baselines(bench: Bench, *, repeats: bool = False) -> None:
    """Popularity and item-kNN, in this process; ``repeats``: seen items are candidates."""
    names = ("popularity", "item-knn")
    if all((bench.folder / name / "seed_0" / "result.json").exists() for name in names):
        return
    split, config = bench.split(), EvaluationConfig(exclude_seen=not repeats)
    neighbours = best_item_knn(split.train, split.validation, config).neighbours
    for name, make, settings in (
        ("popularity", lambda: Popularity(split.train), {}),
        ("item-knn", lambda: ItemKNN(split.train, neighbours), {"neighbours": neighbours}),
    ):
        folder, begun = bench.folder / name / "seed_0", time.process_time()
        recommender = make()
        seconds = time.process_time() - begun
        for part, rows in (("validation", split.validation), ("test", split.test)):
            metrics, ranks = evaluate(recommender, rows, config)
            save_column(folder, f"{part}_ranks", ranks.astype(np.int64))
            print(name, part, metrics, flush=True)
        timed = {"train_seconds": seconds, "train_seconds_to_best": seconds, "epochs": []}
        save_result(folder, {"settings": settings, "seed": 0, **timed})


def write_report(bench: Bench, task: str, path: Path) -> None:
    """Gather all finished runs of a task and write the benchmark's file."""
    users = bench.split().test.users

    def make(name: str, ranks: np.ndarray, **more: object) -> System:
        return of_ranks(name, ranks, users, lambda row: ranking_metrics(row, 10), **more)

    earlier = earlier_systems(path, NDCG)
    systems = read_systems(bench.folder, SYSTEMS, "ranks", make, earlier)
    kept = {system.name for system in systems if not len(system.draws)}
    ours, peers = systems[0], [one for one in systems if not one.name.startswith(OURS)]
    rows, figures, best = report(systems, NDCG, folder=bench.folder, more={"task": task})
    rows = [row | ({"measured": "earlier"} if row["system"] in kept else {}) for row in rows]
    rows += _earlier_trials(path, kept)
    ratios = {key: figures[key] for key in figures if key.startswith("ratio")}
    named = {"linear": "linear", "bsarec": "bsarec", ENSEMBLE: "ensemble"}
    write_benchmark(
        path,
        name=f"prediction_{task}",
        protocol=PROTOCOL
        | {"best_peer": best.name}
        | {"data": json.loads((bench.task / "split.json").read_text(encoding="utf-8"))},
        rows=rows,
        figures={
            "ndcg10": ours.mean(NDCG),
            "hr10": ours.mean("hr@10"),
            "best_peer_ndcg10": best.mean(NDCG),
            "best_peer_hr10": best.mean("hr@10"),
            **ratios,
            **{f"{named[s.name]}_ndcg10": s.mean(NDCG) for s in systems if s.name in named},
            **{
                f"curve_lead_from_{start}_s": _curve_lead(ours, peers, start)
                for start in CURVES_FROM
            },
        },
        seeds=seeds_of(systems),
        versions=peer_versions(peers),
    )


def _earlier_trials(path: Path, names: set[str]) -> list[Row]:
    """Rows of the settings that were tried of these systems in an earlier measurement."""
    if not names:
        return []
    table = json.loads(path.read_text(encoding="utf-8"))["rows"]
    tried = [row for row in table if row["system"] in names and "trial" in row]
    return [{**row, "measured": "earlier"} for row in tried]


def _curve_lead(ours: System, peers: list[System], start: float) -> float:
    """The least lead of our curve over the highest peer's, from ``start`` seconds of training on.

    A curve is the best validation NDCG@10 so far; popularity and item-kNN have none. The curve of
    a closed form begins when it is solved.
    """
    curves = [system for system in (ours, *peers) if system.runs[0]["epochs"]]
    moments = [e["train_seconds"] for s in curves for run in s.runs for e in run["epochs"]]
    seconds = np.array(sorted({start, *(moment for moment in moments if moment > start)}))
    own, *others = (_best_so_far(system, seconds) for system in curves)
    return float((own - np.max(others, axis=0)).min())


def _best_so_far(system: System, seconds: Floats) -> Floats:
    """(T,) best validation NDCG@10 within so many seconds of training, mean over seeds."""

    def best(run: dict, moment: float) -> float:
        known = [e[NDCG] for e in run["epochs"] if e["train_seconds"] <= moment]
        return max(known, default=0.0)

    return np.mean([[best(run, moment) for moment in seconds] for run in system.runs], axis=0)


def main(options: argparse.Namespace) -> None:
    """Do the chosen stages."""
    task = options.task
    bench = Bench(
        options.work / task, options.pin, options.environment, RANKING, NDCG, {"repeats": 0}
    )
    overrides = []
    if task == "beauty":
        events, items = write_tables(options.shared, bench.folder)
        overrides = [f"--data.source={events}", f"--data.items={items}"]
    stages = [options.stage] if options.stage else STAGES
    if "export" in stages:
        config = RunConfig.load(None, overrides)
        bench.export(split_log(open_data(config.data), config.data.split))
    if "peers" in stages:
        budget = Budget.of(options)
        make_environment(options.environment, "requirements.txt")
        baselines(bench)
        for system in options.systems:
            tried = points(system, task)
            if system in CLOSED_FORM:
                closed_form.solve(bench, system, closed_form.tune(bench, system, tried, budget))
                continue
            setting = bench.tune(system, tried, budget) if budget.trials > 1 else next(tried)
            bench.seeds(system, setting, options.seeds, budget)
    if "ours" in stages:
        words = overrides + (TWICE_AN_EPOCH if task == "ml100k" else [])
        config_file = options.config or Path(CONFIGS[task])
        bench.ours(config_file, words, options.seeds, logged=f"eval_{NDCG}")
    if "report" in stages:
        default = options.output == PARSER.get_default("output")
        output = OUTPUT / f"prediction_{task}.json" if default else options.output
        write_report(bench, task, output)


if __name__ == "__main__":
    main(started(PARSER))
