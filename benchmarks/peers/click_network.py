"""Training of the torch peers: batches, one clock, the best epoch's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.peers.click_task import Examples, Floats
from benchmarks.peers.click_trial import Trial


def fit(
    trial: Trial,
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
