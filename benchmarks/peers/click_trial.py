"""One trial of a feedback peer: the clock, validation AUC after every epoch, the files it leaves.

    python lstm_peer.py --task FOLDER --output FOLDER --seed 0 --settings '{"width": 64}'

A trial stops after `--patience` epochs without a better AUC, after `--max-epochs`, or after the
epoch in which `--max-seconds` of training are over. It writes the log-odds of the best epoch
(`validation_scores.npy`, `test_scores.npy`) and, last, `result.json`. With `--no-test` test is
never asked: that is how settings are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.peers.click_metrics import auc
from benchmarks.peers.click_task import Examples, Floats, Task
from benchmarks.peers.timed_trial import TimedTrial, trial_options

Scorer = Callable[[Examples], Floats]
"""From N examples to (N,) log-odds."""


class Trial(TimedTrial):
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
        self.task = Task.load(options.task)
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
