"""What each way of learning is worth: docs/benchmarks/learning_ablations.json.

    python -m benchmarks.training.learning [--epochs 5] [--seeds 0 1 2] [--only "crop 0.4; mask 0.3"]

Every row is configs/movielens_100k.yaml with one block on (or one regulariser changed), trained
and measured on validation by NDCG@10; the test split is never looked at. A finished run leaves a
JSON in ``--work`` and is skipped by the next call; the file is written from those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_benchmark
from benchmarks.statistics import means_over_users_and_seeds
from benchmarks.training.ablations import validated
from benchmarks.training_runs import train
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.metrics import ndcg_of_rows, protocol
from llm_influence.utils import write_text

CONFIG = Path("configs/movielens_100k.yaml")
BASELINE, FULL = "baseline", "template full"
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
    "dropout off": ["model.dropout=0"],
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
    if options.epochs is not None:
        usual.append(f"--train.epochs={options.epochs}")
    if options.layers is not None:
        usual.append(f"--model.layers={options.layers}")
    return RunConfig.load(CONFIG, [*usual, *words])


def measure(config: RunConfig, split: Split) -> dict[str, object]:
    """Train one run and measure it on validation, row by row."""
    shutil.rmtree(config.output, ignore_errors=True)
    begun = time.perf_counter()
    trainer = train(config, split)
    seconds = time.perf_counter() - begun
    ranks, _ = validated(trainer.influence_model, split.validation)
    shutil.rmtree(config.output)
    return {"ranks": ranks.tolist(), "seconds": seconds}


def finished(kept: Path, name: str, seeds: list[int]) -> list[dict]:
    """What a setting gave in every seed; nothing where a seed is lacking."""
    paths = [kept / f"{name}_{seed}.json" for seed in seeds]
    if not all(path.is_file() for path in paths):
        return []
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def row_of(name: str, found: dict[str, list[dict]]) -> dict[str, object]:
    """A setting's line of the file: its value, and its difference from what it is compared with."""
    ndcg = np.array([ndcg_of_rows(np.array(run["ranks"])) for run in found[name]])
    mean, low, high = means_over_users_and_seeds(ndcg)
    row = {
        "system": name,
        "task": "next item, validation",
        "changed": "; ".join(SETTINGS[name]) or name,
        "metric": "ndcg@10",
        "value": mean,
        "low": low,
        "high": high,
        "seeds": len(ndcg),
        "seconds": float(np.mean([run["seconds"] for run in found[name]])),
    }
    off = OFF.get(name, BASELINE)
    if name not in (BASELINE, off) and len(found.get(off, [])) == len(ndcg):
        other = np.array([ndcg_of_rows(np.array(run["ranks"])) for run in found[off]])
        difference, low, high = means_over_users_and_seeds(ndcg - other)
        row |= {"off": off, "ndcg_difference": difference}
        row |= {"ndcg_difference_low": low, "ndcg_difference_high": high}
    return row


def main(options: argparse.Namespace) -> None:
    """Measure the runs that have no result yet, then write all that have one."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(options.threads)
    asked = [name.strip() for name in options.only.split(";")] if options.only else list(SETTINGS)
    if unknown := set(asked) - SETTINGS.keys():
        raise SystemExit(f"--only {', '.join(unknown)}: choose among {'; '.join(SETTINGS)}")
    config = config_of(BASELINE, 0, options)
    split = split_log(open_data(config.data), config.data.split)
    kept = options.work / f"epochs_{config.train.epochs:g}_layers_{config.model.layers}"
    for seed in options.seeds:
        for name in dict.fromkeys([BASELINE, *asked]):
            path = kept / f"{name}_{seed}.json"
            if not path.is_file():
                write_text(path, json.dumps(measure(config_of(name, seed, options), split)) + "\n")
            ranks = np.array(json.loads(path.read_text(encoding="utf-8"))["ranks"])
            print(f"{name}, seed {seed}: NDCG@10 {ndcg_of_rows(ranks).mean():.4f}", flush=True)
    found = {name: runs for name in SETTINGS if (runs := finished(kept, name, options.seeds))}
    rows = [row_of(name, found) for name in found]
    write_benchmark(
        options.write,
        name="learning_ablations",
        protocol={
            "baseline": f"{CONFIG}, {config.train.epochs:g} epochs",
            "split": split.description,
            "validation": protocol(split.validation, config.evaluation),
            "test": "never looked at",
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, help="default: the configuration's")
    parser.add_argument("--layers", type=int, help="of the backbone; default: the configuration's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", help="names of settings, with semicolons between; default: all")
    parser.add_argument("--core", type=int, help="run on this CPU core alone; default: any")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_learning"))
    parser.add_argument(
        "--write", type=Path, default=Path("docs/benchmarks/learning_ablations.json")
    )
    main(parser.parse_args())
