"""Windows of a warm update: what is new, and a share of what the model knew before.

Training on new events alone moves a model away from what it learned (catastrophic forgetting,
McCloskey & Cohen 1989); reading some of the old ones again holds it there (rehearsal, Robins 1995;
experience replay in Rolnick et al. 2019, arXiv:1811.11682).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc

from llm_influence.data.log import BehaviorLog
from llm_influence.rendering.encoder import Encoder
from llm_influence.training.windows import Window, WindowDataset
from llm_influence.types import IntArray


class ReplayWindows(WindowDataset):
    """Windows in which the newest events are taught, and old windows drawn beside them.

    A new window has old events as context; they are no labels there. Old windows are cut from the
    events that the model was trained on, as its own training cut them, and drawn once.

    Args:
        log: Events of training, old and new.
        encoder: Says how many events fit.
        known: (U,) how many of each user's first events are old.
        trained: (U,) how many of them trained the model; the others were kept back to measure it.
        share: Of all windows that are old, in [0, 1]: 0 draws none, 1 takes all there are.
        seed: Of the draw.

    Attributes:
        new: How many windows teach new events.
        replayed: How many are old.
    """

    def __init__(
        self,
        log: BehaviorLog,
        encoder: Encoder,
        *,
        known: IntArray,
        trained: IntArray,
        share: float,
        seed: int,
    ) -> None:
        super().__init__(log, encoder)
        new = [
            replace(window, taught=int(known[window.user]))
            for window in self.windows
            if window.stop >= known[window.user]
        ]
        old = _old_windows(log, encoder, trained) if share else []
        wanted = len(old) if share == 1 else round(len(new) * share / (1 - share))
        drawn = np.random.default_rng(seed).permutation(len(old))[:wanted]
        self.new, self.replayed = len(new), len(drawn)
        self.windows = new + [old[place] for place in np.sort(drawn)]


def _old_windows(log: BehaviorLog, encoder: Encoder, trained: IntArray) -> list[Window]:
    """All windows of the model's own training, with the users' numbers in ``log``."""
    old = log.prefix(trained)
    users = pc.index_in(old.user_ids, value_set=log.user_ids).to_numpy()
    windows = WindowDataset(old, encoder).windows
    return [replace(window, user=int(users[window.user])) for window in windows]
