"""Memory of training and ranking with a million items: docs/benchmarks/million_items.json.

    python -m benchmarks.training.million_items [--items 1000000] [--steps 12]

A fresh process does what a run does: it builds the model, takes optimiser steps with
`InfluenceTrainer`, ranks 64 held-out events and makes one recommendation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks.harness import arguments, row_of, started, write_benchmark
from benchmarks.training_runs import ranks_of
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.trainer import InfluenceTrainer, training_arguments

ITEMS, USERS, EVENTS, STEPS = 1_000_000, 64, 53, 12
TEXTS = 1_000
"""Distinct item texts: reading more of them takes time, no memory that grows."""
PARSER = arguments(
    __doc__,
    "million_items",
    threads=None,
    items=ITEMS,
    steps=STEPS,
    measure=(False, "print the figures of this process, write nothing"),
)


def million_items(items: int = ITEMS, steps: int = STEPS) -> dict[str, float]:
    """The figures, measured in a fresh process."""
    words = ["-m", "benchmarks.training.million_items", "--measure"]
    command = [sys.executable, *words, f"--items={items}", f"--steps={steps}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Watch(TrainerCallback):
    """Memory held after every step."""

    def __init__(self) -> None:
        self.resident: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Note it."""
        self.resident.append(_memory("VmRSS"))
        _say(f"step {state.global_step}: {self.resident[-1]:.2f} GiB")


def measure(items: int, steps: int) -> dict[str, float]:
    """Build, train, rank and recommend in this process."""
    watch = Watch()
    config = RunConfig.model_validate({"evaluation": {"batch_size": 64}})
    split = split_log(random_log(items), config.data.split)
    clock = Clock()
    model = InfluenceModel.build(config, split.train)
    build = clock("build")
    with TemporaryDirectory() as folder:
        args = training_arguments(config, Path(folder), 1)
        args.max_steps, args.load_best_model_at_end = steps, False
        args.eval_strategy = args.save_strategy = "no"
        trainer = InfluenceTrainer(config, model, split, args)
        trainer.remove_callback(EarlyStoppingCallback)
        trainer.add_callback(watch)
        trainer.train()
    train, peak = clock("train"), _memory("VmHWM")
    del trainer  # as after a run: the optimiser is gone
    ranks = ranks_of(model, split.test, config)
    rank = clock("rank")
    best = model.recommend(split.test.history(0), k=10)
    recommend = clock("recommend")
    if len(best) != 10 or len(ranks) != USERS or not np.isfinite(ranks).all():
        raise RuntimeError(f"{len(best)} recommendations and {len(ranks)} ranks")
    return {
        "items": items,
        "peak_gib_million_items": peak,
        "peak_gib_with_ranking": _memory("VmHWM"),
        "growth_mib_after_second_step": 1024 * (watch.resident[-1] - watch.resident[1]),
        "seconds_build": build,
        "seconds_a_step": train / steps,
        "seconds_rank_64": rank,
        "seconds_recommend": recommend,
    }


def random_log(items: int, users: int = USERS, texts: int = TEXTS) -> BehaviorLog:
    """A log of ``users`` with `EVENTS` random events each, over a catalogue of ``items``.

    Args:
        items: Size of the catalogue.
        users: Number of users.
        texts: Distinct item texts.
    """
    numbers = np.arange(items).astype(str)
    kinds = np.char.add("thing of kind ", (np.arange(items) % texts).astype(str))
    catalogue = pa.table({"item_id": numbers, "title": kinds})
    rng = np.random.default_rng(0)
    events = pa.table(
        {
            "user_id": np.repeat(np.arange(users), EVENTS),
            "item_id": numbers[rng.integers(items, size=users * EVENTS)],
            "timestamp": 1_000_000 + 3600 * np.tile(np.arange(EVENTS), users),
        }
    )
    return BehaviorLog.read(events, items=catalogue)


class Clock:
    """Seconds since the last call, printed with the memory held."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> float:
        """Seconds of the stage that ends now."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        held, peak = _memory("VmRSS"), _memory("VmHWM")
        _say(f"{stage}: {seconds:.1f} s, holds {held:.2f} GiB, peak {peak:.2f} GiB")
        return seconds


def _memory(name: str) -> float:
    """GiB of this process from Linux: VmRSS is held now, VmHWM is the peak.

    ``ru_maxrss`` would count the process that started this one too, up to the moment it did.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError(f"no {name} in /proc/self/status: this benchmark needs Linux")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(options: argparse.Namespace) -> None:
    """Measure in a fresh process and write the file."""
    if options.measure:
        print(json.dumps(measure(options.items, options.steps)))
        return
    figures = million_items(options.items, options.steps)
    write_benchmark(
        options.output,
        name="million_items",
        protocol={
            "model": "MiniLM-L6 with LoRA rank 16, AdamW, 32 histories of 50 events a step, fp32 "
            "where the chip has no bf16; sampled softmax of 1,024 shared negatives, residual rank "
            "32: all defaults",
            "catalogue": f"{options.items} items; {TEXTS} distinct texts, read by MiniLM and "
            "shared, since reading more takes time and no memory",
            "memory": "peak resident set (VmHWM) of a fresh process, libraries and data included: "
            f"peak_gib_million_items until after {options.steps} optimiser steps, "
            "peak_gib_with_ranking until after 64 ranked rows and one recommendation as well",
            "seconds": "of one run on a machine that other work may share: orders of magnitude",
        },
        rows=[
            row_of("llm_influence", "a million items", name, value)
            for name, value in figures.items()
        ],
        figures=figures,
        seeds=[0],
    )


if __name__ == "__main__":
    main(started(PARSER))
