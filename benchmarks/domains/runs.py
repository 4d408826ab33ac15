"""Our runs for the benchmarks of docs/domains: fine-tuned once, asked once, kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.pinned import finetune_pinned
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.run import Run
from llm_influence.utils import write_text, write_whole

OURS = "llm_influence"


@dataclass(frozen=True, slots=True)
class OurRun:
    """What one seed left.

    Attributes:
        seed: The seed.
        found: Columns of `predict_rows` on the (N,) test examples.
        metrics: The run's metrics.json.
    """

    seed: int
    found: Mapping[str, np.ndarray]
    metrics: Mapping[str, object]


def our_runs(
    folder: Path, config: Path, overrides: Sequence[str], seeds: Sequence[int], core: int
) -> list[OurRun]:
    """Fine-tune with every seed on one core, unless that is done, and ask the test examples."""
    return [_our_run(folder / f"seed_{seed}", config, overrides, seed, core) for seed in seeds]


def _our_run(folder: Path, config: Path, overrides: Sequence[str], seed: int, core: int) -> OurRun:
    answers = folder / "test.npz"
    model = finetune_pinned(config, overrides, folder, seed, core)
    if not answers.exists():
        run = Run.open(model)
        found = predict_rows(run.model, run.split.test, run.config.evaluation)
        save_arrays(answers, found)
    metrics = json.loads((model / "metrics.json").read_text(encoding="utf-8"))
    print(f"{OURS} {folder.name}: {json.dumps(metrics['validation'])}", flush=True)
    return OurRun(seed, np.load(answers), metrics)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, whole or not at all."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)


def save_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a run's ``result.json``; it is written last, so a run that has one is finished."""
    write_text(path, json.dumps(result, indent=1) + "\n")
