"""Kinds of adapter: trainable parameters, seconds an epoch, NDCG@10 on validation: adapters.json.

    python -m benchmarks.training.adapters [--epochs 2] [--layers 3] [--core 0]

One run a kind on MovieLens-100K; only the adapter and its learning rate differ. The test split is
never used.
"""

from __future__ import annotations

import argparse
import shutil
import time

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.harness import arguments, results_of, started, write_benchmark
from benchmarks.training_runs import open_split, train
from llm_influence.config.model import ADAPTER_OPTIONS
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split
from llm_influence.evaluation.metrics import protocol

USUAL_RATE = 1e-3
"""The configuration's own, for low-rank updates and bottlenecks."""
RATES = {
    "full": 1e-4,  # moves every pretrained weight: the usual rate would undo the pretraining
    "ia3": 5e-3,  # a few thousand numbers that start at one and have far to go; 3e-3 in its paper
    "rslora": 5e-4,  # alpha / sqrt(rank) makes its updates 4 times as large at rank 16
}
PARSER = arguments(
    __doc__,
    "adapters",
    epochs=2,
    layers=(int, "of the backbone; default: all"),
    users=(int, "the first so many only, for a trial"),
)


class EpochClock(TrainerCallback):
    """Seconds of every epoch's steps, without validation and saving."""

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
    rate = RATES.get(kind, USUAL_RATE)
    epochs = {"epochs": options.epochs, "patience": options.epochs}
    return RunConfig.model_validate(
        {
            "output": str(options.work / kind),
            "model": {"layers": options.layers, "adapter": {"kind": kind}},
            "train": {**epochs, "learning_rate": rate},
        }
    )


def measure(config: RunConfig, split: Split) -> dict[str, object]:
    """Train one kind and measure it on validation."""
    clock = EpochClock()
    shutil.rmtree(config.output, ignore_errors=True)  # a stopped kind starts anew
    trainer = train(config, split, [clock])
    model, metrics = trainer.influence_model, trainer.measure(split.validation)
    measured = {
        "adapter": config.model.adapter.kind,
        "described": config.model.adapter.describe(),
        "learning_rate": config.train.learning_rate,
        "parameters_in_backbone": trainable(model.body),
        "parameters_in_all": trainable(model),
        "seconds_per_epoch": sum(clock.seconds) / len(clock.seconds),
        "ndcg@10": metrics["ndcg@10"],
        "hr@10": metrics["hr@10"],
    }
    if config.model.adapter.kind == "adalora":
        measured["ranks_in_all"] = sum(model.adapter.ranks().values())
    shutil.rmtree(config.output)
    return measured


def trainable(part: torch.nn.Module) -> int:
    """Numbers that training may change."""
    return sum(p.numel() for p in part.parameters() if p.requires_grad)


def main(options: argparse.Namespace) -> None:
    """Measure the kinds that have no result yet, then write them all."""
    first = config_of("lora", options)
    split = open_split(first, options.users)
    settings = {name: getattr(options, name) for name in ("epochs", "layers", "threads", "users")}
    results = results_of(options, **settings)
    rows = [
        results.keep(kind, lambda kind=kind: measure(config_of(kind, options), split))
        for kind in ADAPTER_OPTIONS
    ]
    write_benchmark(
        options.output,
        name="adapters",
        protocol={
            "data": first.data.source,
            "split": split.description,
            "validation": protocol(split.validation, first.evaluation),
            "test": "never used",
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
    main(started(PARSER))
