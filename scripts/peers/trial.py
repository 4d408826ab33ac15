"""One trial of a peer: the clock, the validation after every epoch, and the files it leaves.

    python rectools_peer.py --task FOLDER --output FOLDER --seed 0 --settings '{"model": "sasrec"}'

A trial stops after `--patience` validations without a better NDCG@10, after `--max-epochs`, or
after the epoch in which `--max-seconds` of training are over. It writes `validation_ranks.npy` and
`test_ranks.npy` of the best epoch and, last, `result.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from ranks import ndcg
from task import Scorer, Task
from torch import nn

PACKAGES = ("cornac", "numpy", "pandas", "rectools", "torch")


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
        self.task = Task.load(options.task, repeats=bool(options.repeats))
        self._output: Path = options.output
        self._patience: int = options.patience
        self._max_seconds: float = options.max_seconds
        self._epochs: list[dict[str, float]] = []
        self._best_weights: dict[str, torch.Tensor] = {}
        self._train_seconds = 0.0
        self._begun = self._resumed = time.process_time()
        torch.set_num_threads(1)

    @property
    def _best(self) -> dict[str, float]:
        return max(self._epochs, key=lambda epoch: epoch["ndcg@10"])

    def start_clock(self) -> None:
        """Training begins, or goes on after a validation."""
        now = time.process_time()
        if not self._epochs:
            self._begun = now
        self._resumed = now

    def end_epoch(self, model: nn.Module, scorer: Scorer) -> bool:
        """Validate, remember the best weights, and say whether to stop."""
        self._train_seconds += time.process_time() - self._resumed
        quality = ndcg(self.task.validation.ranks(scorer))
        self._epochs.append(
            {
                "epoch": len(self._epochs) + 1,
                "train_seconds": self._train_seconds,
                "wall_seconds": time.process_time() - self._begun,
                "ndcg@10": quality,
            }
        )
        print(json.dumps(self._epochs[-1]), flush=True)
        if self._best is self._epochs[-1]:
            self._best_weights = {
                name: weight.detach().clone() for name, weight in model.state_dict().items()
            }
        waited = self._epochs[-1]["epoch"] - self._best["epoch"]
        return (
            waited >= self._patience
            or len(self._epochs) >= self.max_epochs
            or self._train_seconds >= self._max_seconds
        )

    def finish(self, model: nn.Module, scorer: Scorer) -> None:
        """Rank validation and test with the weights of the best epoch and write everything."""
        model.load_state_dict(self._best_weights)
        self._output.mkdir(parents=True, exist_ok=True)
        for name in ("validation", "test"):
            ranks = getattr(self.task, name).ranks(scorer)
            np.save(self._output / f"{name}_ranks.npy", ranks)
        record = {
            "settings": self.settings,
            "seed": self.seed,
            "best_epoch": self._best["epoch"],
            "validation_ndcg@10": self._best["ndcg@10"],
            "train_seconds": self._train_seconds,
            "wall_seconds": self._epochs[-1]["wall_seconds"],
            "train_seconds_to_best": self._best["train_seconds"],
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "epochs": self._epochs,
            "versions": {package: metadata.version(package) for package in PACKAGES},
        }
        part = self._output / "result.json.part"
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self._output / "result.json")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True, help="folder of the saved split")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", required=True, help="JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--max-seconds", type=float, default=600)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=0, help="1: items may come again")
    return parser.parse_args()
