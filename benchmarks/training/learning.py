"""The effect of each way of learning: docs/benchmarks/learning_ablations.json.

    python -m benchmarks.training.learning [--epochs 5] [--seeds 0 1 2] [--only "crop 0.4"]

Every row is configs/movielens_100k.yaml with one block on (or one regulariser changed), trained
and measured on validation by NDCG@10; the test split is never used.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from benchmarks.harness import (
    Row,
    arguments,
    results_of,
    selection,
    started,
    write_benchmark,
)
from benchmarks.statistics import mean_over_users_and_seeds
from benchmarks.training_runs import MOVIELENS, measure_on_validation, open_split
from llm_influence.config.run import RunConfig
from llm_influence.evaluation.metrics import ndcg_of_rows, protocol
from llm_influence.utils import write_text

BASELINE, FULL = "baseline", "template full"
PARSER = arguments(
    __doc__,
    "learning_ablations",
    seeds=(0,),
    epochs=(float, "default: the configuration's"),
    layers=(int, "of the backbone; default: the configuration's"),
    only=(str, "names of settings, with semicolons between; default: all"),
    users=(int, "the first so many only, for a trial"),
)
VIEWS = "{share: 0, crop: 0.4, mask: 0.3, reorder: 0.3}"

SETTINGS: dict[str, list[str]] = {
    BASELINE: [],
    "crop 0.4": ["train.augmentation={crop: 0.4}"],
    "mask 0.3": ["train.augmentation={mask: 0.3}"],
    "reorder 0.3": ["train.augmentation={reorder: 0.3}"],
    "crop, mask, reorder": ["train.augmentation={crop: 0.4, mask: 0.3, reorder: 0.3}"],
    FULL: ["rendering.template=full"],
    "paraphrase": ["rendering.template=full"],  # and another order of the fields, see `config_of`
    "contrastive 0.1": [f"train.augmentation={VIEWS}", "train.contrastive.weight=0.1"],
    "contrastive 0.5": [f"train.augmentation={VIEWS}", "train.contrastive.weight=0.5"],
    "adversarial 0.3": ["train.adversarial.epsilon=0.3"],
    "adversarial 1": ["train.adversarial.epsilon=1"],
    "pretraining masked": ["pretraining={objective: masked, epochs: 2, mask_share: 0.3}"],
    "pretraining causal": ["pretraining={objective: causal, epochs: 2}"],
    "event dropout 0.5": ["train.event_dropout=0.5"],
    "label smoothing 0.1": ["train.label_smoothing=0.1"],
    "L2 off": ["train.weight_decay=0"],
    "L2 0.1": ["train.weight_decay=0.1"],
    "dropout 0.2": ["model.dropout=0.2"],
}
OFF = {"paraphrase": FULL}
"""What a setting is compared with, where that is not the baseline."""


def config_of(name: str, seed: int, options: argparse.Namespace) -> RunConfig:
    """The run of one setting and seed."""
    words = [f"--{word}" for word in SETTINGS[name]]
    if name == "paraphrase":
        path = options.work / "other_order.yaml"
        template = {"name": "other_order", "event": "{gap} {value} {behavior} {item}"}
        write_text(path, json.dumps(template))  # JSON is YAML
        words.append(f"--train.augmentation.templates=[{path}]")
    usual = [f"--output={options.work / 'run'}", f"--train.seed={seed}"]
    for key, value in (("train.epochs", options.epochs), ("model.layers", options.layers)):
        usual += [f"--{key}={value}"] if value is not None else []
    return RunConfig.load(MOVIELENS, [*usual, *words])


def row_of(name: str, measured: dict[str, list[dict]], users: np.ndarray) -> Row:
    """A setting's value, and its difference from what it is compared with."""

    def ndcg(setting: str) -> np.ndarray:
        return np.array([ndcg_of_rows(np.array(run["ranks"])) for run in measured[setting]])

    mean, low, high = mean_over_users_and_seeds(ndcg(name), users)
    row: Row = {
        "system": name,
        "task": "next item, validation",
        "changed": "; ".join(SETTINGS[name]) or name,
        "metric": "ndcg@10",
        **{"value": mean, "low": low, "high": high},
        "seeds": len(measured[name]),
        "seconds": float(np.mean([run["seconds"] for run in measured[name]])),
    }
    off = OFF.get(name, BASELINE)
    if name not in (BASELINE, off) and off in measured:
        mean, low, high = mean_over_users_and_seeds(ndcg(name) - ndcg(off), users)
        row |= {"off": off, "ndcg_difference": mean}
        row |= {"ndcg_difference_low": low, "ndcg_difference_high": high}
    return row


def main(options: argparse.Namespace) -> None:
    """Measure the runs that have no result yet, then write all that have one."""
    config = config_of(BASELINE, 0, options)
    split = open_split(config, options.users)
    results = results_of(options, epochs=options.epochs, layers=options.layers, users=options.users)
    for seed in options.seeds:
        for name in dict.fromkeys([BASELINE, *selection(options.only, list(SETTINGS))]):
            results.keep(
                f"{name}, seed {seed}",
                lambda n=name, s=seed: measure_on_validation(config_of(n, s, options), split),
            )
    measured = {
        name: [results.keep(f"{name}, seed {seed}", dict) for seed in options.seeds]
        for name in SETTINGS
        if all(f"{name}, seed {seed}" in results for seed in options.seeds)
    }
    rows = [row_of(name, measured, split.validation.users) for name in measured]
    write_benchmark(
        options.output,
        name="learning_ablations",
        protocol={
            "baseline": f"{MOVIELENS}, {config.train.epochs:g} epochs",
            "split": split.description,
            "validation": protocol(split.validation, config.evaluation),
            "test": "never used",
            "epoch": "the best on validation, for every row",
            "difference": "from the row `off`, where the block is off; paired by user and seed",
            "interval": "95%, bootstrap over users and seeds",
            "seconds": "of one run: building, pretraining, training, validations",
            "threads": options.threads,
            "strengths": "one or two of each block, not searched",
        },
        rows=rows,
        figures={
            f"{figure}_{row['system'].replace(' ', '_').replace(',', '')}": row[key]
            for row in rows
            for figure, key in (
                ("ndcg10_validation", "value"),
                ("ndcg10_difference", "ndcg_difference"),
            )
            if key in row
        },
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
