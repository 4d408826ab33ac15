"""One trial of a peer: options, clock, validation after every epoch, and the files it leaves.

    python -m benchmarks.peers.rectools_peer --task FOLDER --output FOLDER --settings '{...}'

A trial stops after ``--patience`` epochs without a better validation, after ``--max-epochs``, or
after the epoch in which ``--max-seconds`` of training are over. It writes the answers of the best
epoch for validation and test (``*_ranks.npy`` or ``*_scores.npy``) and, last, ``result.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import feedback_task, ranking_task
from benchmarks.peers.feedback_task import Examples, Floats
from benchmarks.peers.metrics import auc, ndcg

Scorer = Callable[[Examples], Floats]
"""From N examples to (N,) log-odds."""
Epoch = dict[str, float]


class TimedTrial:
    """One setting of one peer, from its options to its ``result.json``, which is written last.

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


class RankingTrial(TimedTrial):
    """What a peer's program reports to, epoch by epoch.

    Attributes:
        task: The task.
    """

    metric = "ndcg@10"
    packages = ("cornac", "numpy", "pandas", "rectools", "torch")

    def __init__(self) -> None:
        parser = trial_options()
        parser.add_argument("--repeats", type=int, default=0, help="1: items may come again")
        options = parser.parse_args()
        super().__init__(options)
        self.task = ranking_task.Task.load(options.task, repeats=bool(options.repeats))
        self._best_weights: dict[str, torch.Tensor] = {}
        self._begun = self._resumed
        torch.set_num_threads(1)

    def start_clock(self) -> None:
        """Training begins, or goes on after a validation."""
        super().start_clock()
        if not self._epochs:
            self._begun = self._resumed

    def end_epoch(self, model: nn.Module, scorer: ranking_task.Scorer) -> bool:
        """Validate, remember the best weights, and say whether to stop."""
        self._stop_clock()
        quality = ndcg(self.task.validation.ranks(scorer))
        self._note(quality, self._seconds, wall_seconds=time.process_time() - self._begun)
        if self.is_best:
            self._best_weights = {
                name: weight.detach().clone() for name, weight in model.state_dict().items()
            }
        return self.is_over

    def finish(self, model: nn.Module, scorer: ranking_task.Scorer) -> None:
        """Rank validation and test with the weights of the best epoch and write everything."""
        model.load_state_dict(self._best_weights)
        self._output.mkdir(parents=True, exist_ok=True)
        for name in ("validation", "test"):
            ranks = getattr(self.task, name).ranks(scorer)
            np.save(self._output / f"{name}_ranks.npy", ranks)
        parameters = sum(weight.numel() for weight in model.parameters())
        self._record(parameters, wall_seconds=self._epochs[-1]["wall_seconds"])


class FeedbackTrial(TimedTrial):
    """What a peer's program reports to, epoch by epoch.

    Attributes:
        task: The task.
    """

    metric = "auc"
    packages = ("numpy", "recbole", "scikit-learn", "torch")

    def __init__(self) -> None:
        parser = trial_options()
        parser.add_argument("--no-test", action="store_true", help="leave the test examples alone")
        options = parser.parse_args()
        super().__init__(options)
        self.task = feedback_task.Task.load(options.task)
        self._parts = ("validation",) if options.no_test else ("validation", "test")

    def end_epoch(self, scorer: Scorer) -> bool:
        """Stop the clock, validate, and say whether the trial is over."""
        self._stop_clock()
        self._note(self._auc(scorer(self.task.parts["validation"])), self._seconds)
        return self.is_over

    def end_epochs(self, scores: Iterable[Floats]) -> int:
        """Validate all epochs after a training in one go; the best one's place, from 0.

        An epoch's seconds are its share of all.
        """
        self._stop_clock()
        found = list(scores)
        for number, validation in enumerate(found, start=1):
            self._note(self._auc(validation), self._seconds * number / len(found))
        return int(self._best["epoch"]) - 1

    def _auc(self, scores: Floats) -> float:
        return auc(self.task.parts["validation"].labels, scores)

    def finish(self, scorer: Scorer, parameters: int) -> None:
        """Write the best epoch's scores, which ``scorer`` gives, and the record."""
        self._output.mkdir(parents=True, exist_ok=True)
        for name in self._parts:
            np.save(self._output / f"{name}_scores.npy", scorer(self.task.parts[name]))
        self._record(parameters)


def fit(
    trial: FeedbackTrial,
    network: nn.Module,
    losses: Callable[[], Iterator[Tensor]],
    scorer: Callable[[Examples], Floats],
) -> None:
    """Train with Adam until the trial is over, and write the best epoch's scores.

    Args:
        trial: Gives ``learning_rate`` and ``weight_decay``, and is reported to.
        network: What is trained.
        losses: The losses of one epoch's batches, in an order drawn anew each time.
        scorer: From examples to log-odds, in evaluation mode.
    """
    rate, decay = (float(str(trial.settings[key])) for key in ("learning_rate", "weight_decay"))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay)
    best: dict[str, Tensor] = {}
    over = False
    while not over:
        network.train()
        trial.start_clock()
        for loss in losses():
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
        network.eval()
        over = trial.end_epoch(scorer)
        if trial.is_best:
            best = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best)
    trial.finish(scorer, sum(weight.numel() for weight in network.parameters()))


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
