"""Will a user like an item? MovieLens-100K beside its peers: feedback_ml100k.json.

    python -m benchmarks.prediction.feedback [--stage export|peers|ours|heads|report]

Without --stage all are done in that order; finished runs are not repeated.
docs/results/feedback.md says what is equal for all systems. ``heads``: each head alone against all
heads together, on the same split with the same configuration.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.comparison import (
    System,
    earlier_systems,
    of_ranks,
    of_scores,
    peer_versions,
    read_systems,
    report,
    seeds_of,
)
from benchmarks.harness import Row, arguments, started, write_benchmark
from benchmarks.peer_runs import (
    OURS,
    Bench,
    Budget,
    make_environment,
    read_seeds,
    save_column,
    save_result,
)
from benchmarks.peers.settings import FEEDBACK, LIKED_FROM, points
from benchmarks.prediction.feedback_baselines import BASELINES
from benchmarks.statistics import DRAWS
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.public import open_data
from llm_influence.errors import ConfigError
from llm_influence.evaluation.metrics import feedback_metrics, ranking_metrics
from llm_influence.numerics import percentiles
from llm_influence.utils import write_whole

AUC = "auc"
STAGES = ("export", "peers", "ours", "heads", "report")
BUDGET = Budget(12, tuning_seconds=900.0, trial_seconds=180.0, final_seconds=450.0, patience=5)
SYSTEMS = (OURS, *FEEDBACK, *BASELINES)
ALONE = {
    "items alone": ["--model.feedback_head.weight=0", "--evaluation.choose_by=ndcg"],
    "feedback alone": ["--model.item_head.weight=0"],
}
"""Runs beside ours, which learns both heads; each chooses its epoch by its own metric."""

PROTOCOL = {
    "question": f"will the user rate this film {LIKED_FROM:g} or more, given all that was rated "
    "before and the moment; the film is the one that the user did rate",
    "split": "of users with 21 ratings or more, the last 10 are tested and the 10 before them "
    "validate, each with every event before it as its history; the rest trains",
    "trained_on": "training events alone; the history of a test question includes validation",
    "tree": "HistGradientBoostingClassifier on hand features (benchmarks/peers/tree_features.py): "
    "of a film by training events, earlier ones alone or those of other users (tuned); of a user "
    "by the events before the question",
    "lstm": "plain torch: LSTM or GRU over films, ratings and gaps, the candidate and the state "
    "through a small network (benchmarks/peers/lstm_peer.py)",
    "din": "RecBole's DIN; an item of its history is a film with its rating, features are film, "
    "rating and genres, because RecBole's DIN reads items alone (benchmarks/peers/din_peer.py)",
    "references": "shares of likes of the film (training) and of the user (history of the "
    "question), shrunk; logistic regression on both biases (training); shrinkage chosen on "
    "validation",
    "peers": "setting chosen on validation AUC, seed 0, the same budget of trials and training "
    "seconds each; test is not read until the setting is chosen, then once a seed",
    "epoch": "chosen on validation AUC by every system",
    "gauc": "AUC within a user, averaged by rows over users with both labels. A user's ten "
    "examples follow one another, so whoever reads the first answers is marked down: a like seen "
    "raises the mean and leaves fewer of the ten. Compare systems that read as much",
    "ece": "expected calibration error, 15 bins of equal mass",
    "core": "one core, one thread, every system",
    "seconds": "training until the run stopped, without imports, data and validation; of peers and "
    "references: seconds of the processor; of ours: clock time without validations",
    "interval": f"AUC: {DRAWS} bootstrap draws of users, every draw's AUC being the mean over "
    "seeds; against the best peer: the same draws for both; other metrics: Student's over seeds",
}

PARSER = arguments(
    __doc__,
    "feedback_ml100k",
    seeds=(0, 1, 2),
    stage={"choices": STAGES, "help": "default: all"},
    systems=(list(FEEDBACK), "peers to run"),
    config=(Path("configs/movielens_100k_feedback.yaml"), "our configuration"),
    environment=(Path(".peers_feedback"), "the peers' virtual environment"),
    pin=(0, "the core that every run is pinned to"),
    **BUDGET.options(),
)


def bench_of(folder: Path, core: int, environment: Path) -> Bench:
    """The means to run the systems."""
    return Bench(folder, core, environment, FEEDBACK, AUC, of_trials=("--no-test",))


def export(bench: Bench, config: RunConfig) -> None:
    """Write the split, the catalogue and the examples of all systems.

    Raises:
        ConfigError: The configuration's head does not predict whether a film is liked.
    """
    head = config.model.feedback_head
    if head.kind == "regression" or (head.label, head.positive_from) != ("value", LIKED_FROM):
        raise ConfigError(
            f"the head is {head.kind} of {head.label} from {head.positive_from:g}",
            where="model.feedback_head",
            expected=f"binary or ordinal, of value from {LIKED_FROM:g}, as for the peers",
            fix="give a configuration with this head by --config",
        )
    split = split_log(open_data(config.data), config.data.split)
    bench.export(split)
    table = examples_of(split)
    write_whole(bench.task / "examples.parquet", lambda part: pq.write_table(table, part))


def examples_of(split: Split) -> pa.Table:
    """Every event but a user's first, with user, position, item, label and part.

    An example's history is every event of the user before ``position``.
    """
    log, positions = split.log, split.log.positions()
    parts = np.array(["train", "validation", "test", "rest"])[split.parts()]
    chosen = (positions > 0) & (parts != "rest")
    columns = {
        "user": log.rows_of_users(),
        "position": positions,
        "item": log.items,
        "label": log.values >= LIKED_FROM,
        "part": parts,
    }
    return pa.table({name: column[chosen] for name, column in columns.items()})


def measure(rows: EvaluationSet, scores: np.ndarray) -> dict[str, float]:
    """AUC, GAUC, log loss, calibration error and Brier score of (N,) log-odds."""
    return feedback_metrics(rows.target_values >= LIKED_FROM, scores, rows.users)


def baselines(bench: Bench) -> None:
    """Means and biases, in this process; the shrinkage is chosen on validation."""
    split = bench.split()
    for name, make in BASELINES.items():
        folder, begun = bench.folder / name / "seed_0", time.process_time()
        tried = [(shrinkage, make(split, shrinkage)) for shrinkage in (1.0, 3.0, 10.0, 30.0)]
        seconds = time.process_time() - begun
        quality = [measure(split.validation, score(split.validation))[AUC] for _, score in tried]
        shrinkage, score = tried[int(np.argmax(quality))]
        for part, rows in (("validation", split.validation), ("test", split.test)):
            save_column(folder, f"{part}_scores", score(rows))
        result = {f"validation_{AUC}": max(quality), "train_seconds": seconds, "epochs": []}
        save_result(folder, {"settings": {"shrinkage": shrinkage}, "seed": 0, **result})
        print(f"{name}: validation {max(quality):.4f}", flush=True)


def write_report(bench: Bench, path: Path) -> None:
    """Gather all finished runs and write the benchmark's file."""
    test = bench.split().test
    systems = read_systems(
        bench.folder,
        SYSTEMS,
        "scores",
        lambda name, scores, **more: _of_scores(test, name, scores, **more),
        earlier={key: one for key, one in earlier_systems(path, AUC).items() if key in FEEDBACK},
    )
    ours, *peers = systems
    rows, figures, best = report(systems, AUC, folder=bench.folder, by_users=True)
    heads = list(head_rows(bench, test))
    ratios = {key: figures[key] for key in figures if not key.startswith("difference")}
    for metric in ("gauc", "log_loss", "ece"):
        ratios |= {f"{metric}_value": ours.mean(metric), f"best_peer_{metric}": best.mean(metric)}
    joint = {
        f"joint_{str(row['system']).split()[0]}_ratio": row["value"]
        for row in heads
        if "against" in str(row["system"])
    }
    write_benchmark(
        path,
        name="feedback_ml100k",
        protocol=PROTOCOL
        | {"best_peer": best.name}
        | {"data": json.loads((bench.task / "split.json").read_text(encoding="utf-8"))},
        rows=[*rows, *heads],
        figures=ratios | joint,
        seeds=seeds_of(systems),
        versions=peer_versions(peers),
    )


def _of_scores(test: EvaluationSet, name: str, scores: np.ndarray, **more: object) -> System:
    liked = test.target_values >= LIKED_FROM
    return of_scores(name, scores, liked, test.users, lambda row: measure(test, row), **more)


def head_rows(bench: Bench, test: EvaluationSet) -> Iterator[Row]:
    """Every head alone and together, and the ratio of the two with its interval over users.

    Nothing where a run is missing.
    """

    def ranked(name: str, ranks: np.ndarray) -> System:
        return of_ranks(name, ranks, test.users, ranking_metrics)

    def scored(name: str, scores: np.ndarray) -> System:
        return _of_scores(test, name, scores)

    for head, column, metric, make in (
        ("items", "ranks", "ndcg@10", ranked),
        ("feedback", "scores", AUC, scored),
    ):
        single = read_seeds(bench.folder / f"{head} alone", column)[1]
        if not len(single):
            continue
        alone = make("alone", single)
        together = make("together", read_seeds(bench.folder / OURS, column)[1])
        for system in (alone, together):
            row: Row = {"system": f"{head} head {system.name}", "metric": metric}
            yield {**row, "value": system.mean(metric), "seeds": len(system.metrics)}
        low, high = percentiles(together.draws / alone.draws)
        ratio = together.mean(metric) / alone.mean(metric)
        row = {"system": f"{head} head together against alone", "metric": f"{metric} ratio"}
        yield {**row, "value": ratio, "low": low, "high": high}


def main(options: argparse.Namespace) -> None:
    """Do the chosen stages."""
    bench = bench_of(options.work, options.pin, options.environment)
    stages = [options.stage] if options.stage else STAGES
    logged = f"eval_feedback_{AUC}"
    if "export" in stages:
        export(bench, RunConfig.load(options.config, options.overrides))
    if "peers" in stages:
        budget = Budget.of(options)
        baselines(bench)
        make_environment(options.environment, "requirements_feedback.txt")
        for system in options.systems:
            setting = bench.tune(system, points(system, "feedback"), budget)
            bench.seeds(system, setting, options.seeds, budget)
    if "ours" in stages:
        bench.ours(options.config, options.overrides, options.seeds, logged=logged)
    if "heads" in stages:
        for name, words in ALONE.items():
            has_feedback = name.startswith("feedback")
            bench.ours(
                options.config,
                [*options.overrides, *words],
                options.seeds,
                name=name,
                logged=logged if has_feedback else None,
            )
    if "report" in stages:
        write_report(bench, options.output)


if __name__ == "__main__":
    main(started(PARSER, overrides=True))
