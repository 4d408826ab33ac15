"""Few labels: supervised alone against pretraining and pseudo-labels: low_labels.json.

    python -m benchmarks.training.low_labels [--seeds 0 1 2] [--share 0.1]

MovieLens-100K. A tenth of the users, drawn by the seed, keep their ratings; the events of the
others have no value. The task: was a held-out event of any user rated 4 or more? Epochs are chosen
on the known labels of validation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, arguments, results_of, started, write_benchmark
from benchmarks.statistics import Floats, auc_draws, over_seeds
from benchmarks.training_runs import MOVIELENS, open_log, train
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split, split_log
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.evaluation.metrics import feedback_metrics
from llm_influence.numerics import percentiles
from llm_influence.training.pretrain import PLACE

LIKED = 4.0
SUPERVISED, SEMI = "supervised", "semi_supervised"
ARMS: dict[str, tuple[str, ...]] = {
    SUPERVISED: (),
    "pretraining": ("pretraining",),
    "pseudo_labels": ("pseudo_labels",),
    SEMI: ("pretraining", "next_items", "pseudo_labels"),
}
"""What each learns from beside the labels."""
PARSER = arguments(
    __doc__,
    "low_labels",
    seeds=(0, 1, 2),
    users=(int, "the first so many only, for a trial"),
    share=(0.1, "of the users who keep ratings"),
    epochs=5.0,
    item_epochs=(3.0, "where next items are learned"),
    pretraining_epochs=5.0,
    rounds=1,
    threshold=0.9,
    weight=0.1,
    layers=(int, "of the backbone; default: the configuration's"),
)


def config_of(arm: str, seed: int, options: argparse.Namespace) -> RunConfig:
    """The run of one arm: the feedback head, with or without what needs no labels.

    With next items every window is read, and an epoch is nine times as long.
    """
    pseudo = f"rounds: {options.rounds}, threshold: {options.threshold}, weight: {options.weight}"
    pretraining = f"objective: causal, epochs: {options.pretraining_epochs}"
    blocks = {
        "next_items": ["--model.item_head.weight=1", f"--train.epochs={options.item_epochs}"],
        "pretraining": [f"--pretraining={{{pretraining}}}"],
        "pseudo_labels": [f"--pseudo_labels={{{pseudo}}}"],
    }
    words = [
        f"--output={options.work / 'run'}",
        f"--train.seed={seed}",
        f"--train.epochs={options.epochs}",
        "--data.split={held_out: 10, min_events: 20}",
        "--model.item_head.weight=0",
        "--model.behavior_head.weight=0",
        "--model.feedback_head={weight: 1, label: label}",
        *(word for block in ARMS[arm] for word in blocks[block]),
    ]
    if options.layers is not None:
        words.append(f"--model.layers={options.layers}")
    return RunConfig.load(MOVIELENS, words)


def with_few_labels(log: BehaviorLog, config: RunConfig, share: float, seed: int) -> Split:
    """The task in which a share of the users has ratings, and only test knows all likes."""
    split = split_log(log, config.data.split)
    users = np.random.default_rng(seed).permutation(len(log))[: round(share * len(log))]
    known = np.isin(log.rows_of_users(), users)
    labels = (log.values >= LIKED).astype(np.float32)
    tested = np.zeros(log.num_events, dtype=bool)
    tested[split.test.events] = True
    few = replace(
        log,
        values=np.where(known, log.values, np.float32("nan")),
        labels=np.where(known | tested, labels, np.float32("nan")),
    )
    task = split_log(few, config.data.split)
    labelled = ~np.isnan(few.labels[task.validation.events])  # others only cost time
    return replace(task, validation=task.validation.select(labelled))


def measure(config: RunConfig, split: Split, pretrained: Path) -> dict[str, object]:
    """Train one run and predict every held-out event of test.

    Args:
        config: The run.
        split: Its task.
        pretrained: Where arms of one seed share their pretraining, which is the same for all.
    """
    output = Path(config.output)
    shutil.rmtree(output, ignore_errors=True)
    if config.pretraining.epochs and pretrained.exists():
        shutil.copytree(pretrained, output / PLACE)
    begun = time.perf_counter()
    trainer = train(config, split)
    seconds = time.perf_counter() - begun
    if config.pretraining.epochs and not pretrained.exists():
        shutil.copytree(output / PLACE, pretrained)
    answers = predict_rows(trainer.influence_model.eval(), split.test, config.evaluation)
    rounds = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(output.glob("pseudo_labels/round_*/metrics.json"))
    ]
    shutil.rmtree(output)
    return {
        "labels": answers["feedback_label"].tolist(),
        "scores": answers["feedback_score"].tolist(),
        "users": answers["user"].tolist(),
        "rounds": [{name: row[name] for name in ("labels", "guessed")} for row in rounds],
        "seconds": seconds,
    }


def row_of(arm: str, runs: list[dict], draws: Floats, first: tuple[float, Floats] | None) -> Row:
    """An arm's metrics; ``first``: AUC and draws of the arm that it is compared with."""
    metrics = [feedback_metrics(run["labels"], run["scores"], run["users"]) for run in runs]
    means = {name: mean_of(metrics, name) for name in ("auc", "gauc", "log_loss", "ece")}
    guessed = [sum(each["guessed"] for each in run["rounds"]) for run in runs]
    low, high = percentiles(draws)
    auc = means.pop("auc")
    row: Row = {"system": arm, "task": "like, test", "metric": "auc", "value": auc}
    row |= {"low": low, "high": high, **means, "guessed_labels": float(np.mean(guessed))}
    row["seconds"] = mean_of(runs, "seconds")
    if first is not None:
        low, high = percentiles(draws - first[1])
        row |= {"auc_difference": auc - first[0]}
        row |= {"auc_difference_low": low, "auc_difference_high": high}
    return row


def mean_of(rows: list[dict], name: str) -> float:
    """Mean of one column."""
    return float(np.mean([row[name] for row in rows]))


def rows_of(runs: dict[str, list[dict]]) -> list[Row]:
    """A row an arm; all are compared with the supervised one."""
    labels, users = (np.array(runs[SUPERVISED][0][name]) for name in ("labels", "users"))
    rows, first = [], None
    for arm, own in runs.items():  # test has the same rows in every seed
        draws = [auc_draws(labels == 1, np.array(run["scores"]), users, draws=1000) for run in own]
        rows.append(row_of(arm, own, over_seeds(np.stack(draws)), first))
        first = first or (float(rows[0]["value"]), over_seeds(np.stack(draws)))
    return rows


def main(options: argparse.Namespace) -> None:
    """Measure the runs that have no result yet, then write the file."""
    config = config_of(SUPERVISED, 0, options)
    log = open_log(config, options.users)
    fixed = ("users", "share", "epochs", "item_epochs", "pretraining_epochs", "rounds", "layers")
    results = results_of(options, **{name: getattr(options, name) for name in fixed})
    runs: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    for seed in options.seeds:
        split = with_few_labels(log, config, options.share, seed)
        shared = options.work / f"pretraining_{seed}"
        for arm in ARMS:
            own = config_of(arm, seed, options)
            found = results.keep(
                f"{arm}, seed {seed}", lambda c=own, s=split, p=shared: measure(c, s, p)
            )
            runs[arm].append(found)
    rows = rows_of(runs)
    semi = next(row for row in rows if row["system"] == SEMI)
    write_benchmark(
        options.output,
        name="low_labels",
        protocol={
            "data": f"movielens_100k, {len(log)} users",
            "split": "of a user's events the last 10 are tested, the 10 before validate",
            "labels": f"{options.share:.0%} of the users, drawn by the seed, keep their ratings; "
            "the others' events have no value and no label, in histories too",
            "task": f"was the held-out event rated {LIKED:g} or more? All users are asked",
            "epoch": "chosen by AUC on the known labels of validation",
            "supervised": "feedback head alone",
            "semi_supervised": "causal pretraining on all training events without labels "
            f"({options.pretraining_epochs:g} epochs), next items of all users learned beside the "
            f"labels ({options.item_epochs:g} epochs), then {options.rounds} round(s) of "
            f"pseudo-labels from probability {options.threshold:g} on, weight {options.weight:g}; "
            "the round that answers validation best is kept, the first without guesses included",
            "epochs": options.epochs,
            "interval": "95%, bootstrap over users and seeds; differences are paired by both",
            "seconds": "of training; what semi_supervised shares with pretraining is not in them",
            "rows": len(runs[SUPERVISED][0]["labels"]),
            "threads": options.threads,
        },
        rows=rows,
        figures={
            "supervised": rows[0]["value"],
            "semi_supervised": semi["value"],
            "difference": semi["auc_difference"],
            "difference_low": semi["auc_difference_low"],
            "difference_high": semi["auc_difference_high"],
        },
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
