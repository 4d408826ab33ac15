"""Compare the kinds of adapter: trainable parameters, seconds an epoch, NDCG@10 on validation.

    python -m benchmarks.training.adapters [--epochs 2] [--layers 3] [--core 0] [--threads 1]

One run a kind on MovieLens-100K, everything but the adapter and its learning rate the same. The
test split is never looked at. Finished kinds leave a JSON in ``--work`` and are skipped by the next
call; when all are there, docs/benchmarks/adapters.json is written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.harness import write_benchmark
from benchmarks.training_runs import train
from llm_influence.config.model import ADAPTER_OPTIONS
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.metrics import protocol
from llm_influence.modeling.adapters import AdaLora
from llm_influence.utils import write_text

USUAL_RATE = 1e-3
"""The configuration's own, for low-rank updates and bottlenecks."""

RATES = {
    "full": 1e-4,  # moves every pretrained weight: the usual rate would undo the pretraining
    "ia3": 5e-3,  # a few thousand numbers that start at one and have far to go; 3e-3 in its paper
    "rslora": 5e-4,  # alpha / sqrt(rank) makes its updates 4 times as large at rank 16
}


class EpochClock(TrainerCallback):
    """Seconds of every epoch's steps; validation and saving are left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Start."""
        self._begun = time.perf_counter()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._begun)


def config_of(kind: str, options: argparse.Namespace) -> RunConfig:
    """The run of one kind."""
    return RunConfig.model_validate(
        {
            "output": str(options.work / kind),
            "model": {"layers": options.layers, "adapter": {"kind": kind}},
            "train": {
                "epochs": options.epochs,
                "patience": options.epochs,
                "learning_rate": RATES.get(kind, USUAL_RATE),
            },
        }
    )


def measure(config: RunConfig, split: Split) -> dict[str, object]:
    """Train one kind and measure it on validation."""
    folder, clock = Path(config.output), EpochClock()
    shutil.rmtree(folder, ignore_errors=True)  # a kind that was cut short starts anew
    trainer = train(config, split, [clock])
    model = trainer.influence_model
    metrics = trainer.measure(split.validation)
    found = {
        "adapter": config.model.adapter.kind,
        "described": config.model.adapter.describe(),
        "learning_rate": config.train.learning_rate,
        "parameters_in_backbone": trainable(model.body),
        "parameters_in_all": trainable(model),
        "seconds_per_epoch": sum(clock.seconds) / len(clock.seconds),
        "ndcg@10": metrics["ndcg@10"],
        "hr@10": metrics["hr@10"],
    }
    if isinstance(model.adapter, AdaLora):
        found["ranks_in_all"] = sum(model.adapter.ranks().values())
    shutil.rmtree(folder)
    return found


def trainable(part: torch.nn.Module) -> int:
    """Numbers that training may change."""
    return sum(p.numel() for p in part.parameters() if p.requires_grad)


def main(options: argparse.Namespace) -> None:
    """Measure the kinds that have no result yet, then write them all."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(options.threads)
    rows, first = [], config_of("lora", options)
    split = split_log(open_data(first.data), first.data.split)
    for kind in ADAPTER_OPTIONS:
        setting = f"{kind}-e{options.epochs}-l{options.layers or 'all'}-t{options.threads}"
        path = options.work / f"{setting}.json"
        if not path.is_file():
            result = measure(config_of(kind, options), split)
            write_text(path, json.dumps(result, indent=2) + "\n")
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        print(rows[-1], flush=True)
    write_benchmark(
        options.output,
        name="adapters",
        protocol={
            "data": first.data.source,
            "split": split.description,
            "validation": protocol(split.validation, first.evaluation),
            "test": "never looked at",
            "epoch": "the best on validation",
            "epochs": options.epochs,
            "layers": options.layers or "all",
            "threads": options.threads,
            "seconds_per_epoch": "training steps alone, mean over epochs",
            "backbone": first.model.backbone,
            "rendering": first.rendering.model_dump(),
        },
        rows=rows,
        figures={
            f"{figure}_{row['adapter']}": row[key]
            for row in rows
            for figure, key in (
                ("ndcg10_validation", "ndcg@10"),
                ("seconds_per_epoch", "seconds_per_epoch"),
                ("trainable_parameters", "parameters_in_all"),
            )
        },
        seeds=[first.train.seed],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--layers", type=int, help="of the backbone; default: all")
    parser.add_argument("--core", type=int, help="run on this CPU core alone; default: any")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_adapters"))
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/adapters.json"))
    main(parser.parse_args())
