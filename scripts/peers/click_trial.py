"""One trial of a feedback peer: the clock, validation AUC after every epoch, the files it leaves.

    python lstm_peer.py --task FOLDER --output FOLDER --seed 0 --settings '{"width": 64}'

A trial stops after `--patience` epochs without a better AUC, after `--max-epochs`, or after the
epoch in which `--max-seconds` of training are over. It writes the log-odds of the best epoch
(`validation_scores.npy`, `test_scores.npy`) and, last, `result.json`. With `--no-test` test is
never asked: that is how settings are tried.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
from click_metrics import auc
from click_task import Floats, Questions, Task

PACKAGES = ("numpy", "recbole", "scikit-learn", "torch")
Scorer = Callable[[Questions], Floats]
"""From N questions to (N,) log-odds."""


class Trial:
    """What a peer's program reports to, epoch by epoch.

    Attributes:
        task: The task.
        settings: What this trial tries.
        seed: Seed of all random choices.
        max_epochs: At most so many.
    """

    def __init__(self) -> None:
        options = _options()
        self.settings: dict[str, object] = json.loads(options.settings)
        self.seed: int = options.seed
        self.max_epochs: int = options.max_epochs
        self.task = Task.load(options.task)
        self._parts = ("validation",) if options.no_test else ("validation", "test")
        self._output: Path = options.output
        self._patience: int = options.patience
        self._max_seconds: float = options.max_seconds
        self._epochs: list[dict[str, float]] = []
        self._seconds, self._resumed = 0.0, time.process_time()

    @property
    def _best(self) -> dict[str, float]:
        return max(self._epochs, key=lambda epoch: epoch["auc"])

    @property
    def is_best(self) -> bool:
        """Whether the last epoch is the best so far."""
        return self._best is self._epochs[-1]

    def start_clock(self) -> None:
        """Training begins, or goes on after a validation."""
        self._resumed = time.process_time()

    def end_epoch(self, scorer: Scorer) -> bool:
        """Stop the clock, validate, and say whether the trial is over."""
        self._seconds += time.process_time() - self._resumed
        self._note(scorer(self.task.parts["validation"]), self._seconds)
        epoch = len(self._epochs)
        return (
            epoch - self._best["epoch"] >= self._patience
            or epoch >= self.max_epochs
            or self._seconds >= self._max_seconds
        )

    def end_epochs(self, scores: Iterable[Floats]) -> int:
        """Validate all epochs after a training in one go; the best one's place, from 0.

        An epoch's seconds are its share of all.
        """
        self._seconds += time.process_time() - self._resumed
        found = list(scores)
        for number, validation in enumerate(found, start=1):
            self._note(validation, self._seconds * number / len(found))
        return int(self._best["epoch"]) - 1

    def _note(self, scores: Floats, seconds: float) -> None:
        quality = auc(self.task.parts["validation"].labels, scores)
        epoch = len(self._epochs) + 1
        self._epochs.append({"epoch": epoch, "train_seconds": seconds, "auc": quality})
        print(json.dumps(self._epochs[-1]), flush=True)

    def finish(self, scorer: Scorer, parameters: int) -> None:
        """Write the best epoch's scores, which ``scorer`` gives, and the record."""
        self._output.mkdir(parents=True, exist_ok=True)
        for name in self._parts:
            np.save(self._output / f"{name}_scores.npy", scorer(self.task.parts[name]))
        record = {
            "settings": self.settings,
            "seed": self.seed,
            "best_epoch": self._best["epoch"],
            "validation_auc": self._best["auc"],
            "train_seconds": self._seconds,
            "train_seconds_to_best": self._best["train_seconds"],
            "parameters": parameters,
            "epochs": self._epochs,
            "versions": {package: metadata.version(package) for package in PACKAGES},
        }
        part = self._output / "result.json.part"
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self._output / "result.json")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True, help="folder of the export")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", required=True, help="JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--max-seconds", type=float, default=600)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--no-test", action="store_true", help="leave the test questions alone")
    return parser.parse_args()
