"""Few labels: supervised alone against pretraining and pseudo-labels; low_labels.json.

    python -m benchmarks.training.low_labels [--seeds 0 1 2] [--share 0.1]

MovieLens-100K. A tenth of the users, drawn by the seed, keep their ratings; the others' events
have no value at all, neither to read nor to learn from. Asked is whether a held-out event was
liked (rated 4 or more), of all users. Epochs are chosen on the labels of validation that are
known, those of the tenth. A finished run leaves a JSON in ``--work`` and is skipped by the next
call; the file is written when every arm and seed is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_benchmark
from benchmarks.statistics import auc_over_users_and_seeds
from benchmarks.training_runs import train
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.evaluation.metrics import feedback_metrics
from llm_influence.training.pretrain import PLACE
from llm_influence.utils import write_text

CONFIG = Path("configs/movielens_100k.yaml")
LIKED = 4.0
SUPERVISED, SEMI = "supervised", "semi_supervised"
ARMS: dict[str, tuple[str, ...]] = {
    SUPERVISED: (),
    "pretraining": ("pretraining",),
    "pseudo_labels": ("pseudo_labels",),
    SEMI: ("pretraining", "next_items", "pseudo_labels"),
}
"""What each learns from beside the labels: the rendered log before, the items that come next, and
what the first round was sure of."""


def config_of(arm: str, seed: int, options: argparse.Namespace) -> RunConfig:
    """The run of one arm: the feedback head, with or without what needs no labels.

    With next items every window is read, and an epoch is nine times as long.
    """
    blocks = {
        "next_items": ["--model.item_head.weight=1", f"--train.epochs={options.item_epochs}"],
        "pretraining": [
            f"--pretraining={{objective: causal, epochs: {options.pretraining_epochs}}}"
        ],
        "pseudo_labels": [
            f"--pseudo_labels={{rounds: {options.rounds}, "
            f"threshold: {options.threshold}, weight: {options.weight}}}"
        ],
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
    return RunConfig.load(CONFIG, words)


def with_few_labels(log: BehaviorLog, config: RunConfig, share: float, seed: int) -> Split:
    """The task in which only a share of the users has ratings, and only test knows all likes.

    Validation asks about the labels that are known.
    """
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
    asked = ~np.isnan(few.labels[task.validation.events])  # others say nothing, and cost time
    return replace(task, validation=task.validation.select(asked))


def measure(config: RunConfig, split: Split, pretrained: Path) -> dict[str, object]:
    """Train one run and ask it about every held-out event of test.

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
    found = predict_rows(trainer.influence_model.eval(), split.test, config.evaluation)
    guessed = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(output.glob("pseudo_labels/round_*/metrics.json"))
    ]
    shutil.rmtree(output)
    return {
        "labels": found["feedback_label"].tolist(),
        "scores": found["feedback_score"].tolist(),
        "users": found["user"].tolist(),
        "rounds": [{name: row[name] for name in ("labels", "guessed")} for row in guessed],
        "seconds": seconds,
    }


def main(options: argparse.Namespace) -> None:
    """Measure the runs that have no result yet, then write the file."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(options.threads)
    config = config_of(SUPERVISED, 0, options)
    log = open_data(config.data)
    if options.users is not None:
        log = log.select(log.user_ids[: options.users].to_pylist())
    runs: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    for seed in options.seeds:
        split = with_few_labels(log, config, options.share, seed)
        for arm in ARMS:
            path = options.work / f"{arm}_{seed}.json"
            if not path.is_file():
                shared = options.work / f"pretraining_{seed}"
                found = measure(config_of(arm, seed, options), split, shared)
                write_text(path, json.dumps(found) + "\n")
            run = json.loads(path.read_text(encoding="utf-8"))
            runs[arm].append(run)
            auc = feedback_metrics(run["labels"], run["scores"], run["users"])["auc"]
            print(f"{arm}, seed {seed}: AUC {auc:.4f}", flush=True)
    labels = np.array(runs[SUPERVISED][0]["labels"])  # test asks the same in every seed
    users = np.unique(runs[SUPERVISED][0]["users"], return_inverse=True)[1]
    scores = [np.array([run["scores"] for run in runs[arm]]) for arm in ARMS]
    first, *others = auc_over_users_and_seeds(labels, scores, users)
    rows = [row_of(arm, runs[arm], *found) for arm, found in paired(first, others)]
    semi = next(row for row in rows if row["system"] == SEMI)
    write_benchmark(
        options.write,
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
            "rows": len(labels),
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


def paired(first: tuple, others: list[tuple]) -> list[tuple[str, tuple]]:
    """Every arm with its interval, and the further ones with their difference from the first."""
    rest = [(one, other) for one, other in zip(others[::2], others[1::2], strict=True)]
    return list(zip(ARMS, [(first, None), *rest], strict=True))


def row_of(arm: str, runs: list[dict], value: tuple, difference: tuple | None) -> dict[str, object]:
    """An arm's line of the file."""
    metrics = [feedback_metrics(run["labels"], run["scores"], run["users"]) for run in runs]
    guessed = [sum(found["guessed"] for found in run["rounds"]) for run in runs]
    row = {
        "system": arm,
        "task": "like, test",
        "metric": "auc",
        **dict(zip(("value", "low", "high"), value, strict=True)),
        **{name: mean_of(metrics, name) for name in ("gauc", "log_loss", "ece")},
        "guessed_labels": float(np.mean(guessed)),
        "seconds": mean_of(runs, "seconds"),
    }
    if difference is not None:
        names = ("auc_difference", "auc_difference_low", "auc_difference_high")
        row |= dict(zip(names, difference, strict=True))
    return row


def mean_of(rows: list[dict], name: str) -> float:
    """Mean of one column."""
    return float(np.mean([row[name] for row in rows]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--users", type=int, help="the first so many alone, to try it; default: all"
    )
    parser.add_argument("--share", type=float, default=0.1, help="of the users who keep ratings")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--item_epochs", type=float, default=3, help="where next items are learned")
    parser.add_argument("--pretraining_epochs", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--weight", type=float, default=0.1)
    parser.add_argument("--layers", type=int, help="of the backbone; default: the configuration's")
    parser.add_argument("--core", type=int, help="run on this CPU core alone; default: any")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_low_labels"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/low_labels.json"))
    main(parser.parse_args())
