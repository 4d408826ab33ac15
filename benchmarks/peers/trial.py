"""One trial of a peer: the clock, the validation after every epoch, and the files it leaves.

    python rectools_peer.py --task FOLDER --output FOLDER --seed 0 --settings '{"model": "sasrec"}'

A trial stops after `--patience` validations without a better NDCG@10, after `--max-epochs`, or
after the epoch in which `--max-seconds` of training are over. It writes `validation_ranks.npy` and
`test_ranks.npy` of the best epoch and, last, `result.json`.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from benchmarks.peers.ranks import ndcg
from benchmarks.peers.task import Scorer, Task
from benchmarks.peers.timed_trial import TimedTrial, trial_options


class Trial(TimedTrial):
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
        self.task = Task.load(options.task, repeats=bool(options.repeats))
        self._best_weights: dict[str, torch.Tensor] = {}
        self._begun = self._resumed
        torch.set_num_threads(1)

    def start_clock(self) -> None:
        """Training begins, or goes on after a validation."""
        super().start_clock()
        if not self._epochs:
            self._begun = self._resumed

    def end_epoch(self, model: nn.Module, scorer: Scorer) -> bool:
        """Validate, remember the best weights, and say whether to stop."""
        self._stop_clock()
        quality = ndcg(self.task.validation.ranks(scorer))
        self._note(quality, self._seconds, wall_seconds=time.process_time() - self._begun)
        if self.is_best:
            self._best_weights = {
                name: weight.detach().clone() for name, weight in model.state_dict().items()
            }
        return self.is_over

    def finish(self, model: nn.Module, scorer: Scorer) -> None:
        """Rank validation and test with the weights of the best epoch and write everything."""
        model.load_state_dict(self._best_weights)
        self._output.mkdir(parents=True, exist_ok=True)
        for name in ("validation", "test"):
            ranks = getattr(self.task, name).ranks(scorer)
            np.save(self._output / f"{name}_ranks.npy", ranks)
        parameters = sum(weight.numel() for weight in model.parameters())
        self._record(parameters, wall_seconds=self._epochs[-1]["wall_seconds"])
