"""What trials of all peers share: their options, the clock, when they are over, the record.

Nothing here needs more than Python: peers have environments of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import metadata
from pathlib import Path
from typing import ClassVar

Epoch = dict[str, float]


class TimedTrial:
    """One setting of one peer, from its options to its ``result.json``, which is written last.

    It is over after ``--patience`` epochs without a better value of ``metric`` on validation, after
    ``--max-epochs``, or after the epoch in which ``--max-seconds`` of the processor are over.

    Attributes:
        metric: What validation measures; more is better.
        packages: Whose versions the record has.
        settings: What this trial tries.
        seed: Seed of all random choices.
        max_epochs: At most so many.
    """

    metric: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    def __init__(self, options: argparse.Namespace) -> None:
        self.settings: dict[str, object] = json.loads(options.settings)
        self.seed: int = options.seed
        self.max_epochs: int = options.max_epochs
        self._output: Path = options.output
        self._patience: int = options.patience
        self._max_seconds: float = options.max_seconds
        self._epochs: list[Epoch] = []
        self._seconds, self._resumed = 0.0, time.process_time()

    @property
    def _best(self) -> Epoch:
        return max(self._epochs, key=lambda epoch: epoch[self.metric])

    @property
    def is_best(self) -> bool:
        """Whether the last epoch is the best so far."""
        return self._best is self._epochs[-1]

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is the last one."""
        epoch = len(self._epochs)
        return (
            epoch - self._best["epoch"] >= self._patience
            or epoch >= self.max_epochs
            or self._seconds >= self._max_seconds
        )

    def start_clock(self) -> None:
        """Training begins, or goes on after a validation."""
        self._resumed = time.process_time()

    def _stop_clock(self) -> None:
        self._seconds += time.process_time() - self._resumed

    def _note(self, quality: float, seconds: float, **more: float) -> None:
        """Write down an epoch that ended after so many seconds of training."""
        epoch = len(self._epochs) + 1
        timed = {"epoch": epoch, "train_seconds": seconds, **more}
        self._epochs.append({**timed, self.metric: quality})
        print(json.dumps(self._epochs[-1]), flush=True)

    def _record(self, parameters: int, **more: float) -> None:
        """Write ``result.json``, whole or not at all."""
        record = {
            "settings": self.settings,
            "seed": self.seed,
            "best_epoch": self._best["epoch"],
            f"validation_{self.metric}": self._best[self.metric],
            "train_seconds": self._seconds,
            **more,
            "train_seconds_to_best": self._best["train_seconds"],
            "parameters": parameters,
            "epochs": self._epochs,
            "versions": {package: metadata.version(package) for package in self.packages},
        }
        part = self._output / "result.json.part"
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self._output / "result.json")


def trial_options() -> argparse.ArgumentParser:
    """The options of every peer's program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True, help="folder of the export")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", required=True, help="JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--max-seconds", type=float, default=600)
    parser.add_argument("--patience", type=int, default=10)
    return parser
