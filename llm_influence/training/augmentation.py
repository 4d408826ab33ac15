"""Histories with events removed, so that what explanation asks is nothing strange to the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_influence.types import BoolArray


class EventDropout:
    """Draws which events of a training window stay in its input.

    A ``share`` of the windows loses events; each of these draws its own chance from [0, ``rate``],
    then every event is left out by that chance. The other windows stay whole: predictions are
    made from whole histories. Drawing the chance anew shows the model removals of every size, as
    attribution asks them, from one event to nearly all.

    A draw depends on the seed, the epoch and the window alone, never on its batch or process.

    Args:
        rate: The highest chance that an event is left out, in [0, 1]; 0 leaves all windows whole.
        share: Of the windows that lose events, in [0, 1].
        seed: Of all draws.
    """

    def __init__(self, rate: float = 0.0, share: float = 0.5, *, seed: int = 0) -> None:
        self.rate, self.share, self.seed = rate, share, seed

    def kept(self, events: int, *, epoch: int, user: int, start: int) -> BoolArray:
        """(E,) bool, True where an event of the window stays.

        Args:
            events: Events E of the window.
            epoch: From 0.
            user: The user's number in the training log.
            start: The window's first event.
        """
        if self.rate == 0:
            return np.ones(events, dtype=bool)
        draw = np.random.default_rng([self.seed, epoch, user, start])
        chance = self.rate * draw.random() if draw.random() < self.share else 0.0
        return draw.random(events) >= chance


def events_before(kept: BoolArray, hidden: BoolArray | None = None) -> npt.NDArray[np.int64]:
    """(E + 1,) for each event and the one after the window, the number of the event asked at.

    An event is predicted from the state after the last event before it that can be seen; this is
    that one's number among the kept events, counted from 1, and 0 is the frame.

    Args:
        kept: (E,) bool, events that are rendered.
        hidden: (E,) bool, events that are rendered and hidden from attention; default: none.
    """
    number = np.cumsum(kept)
    if hidden is not None:
        number = np.maximum.accumulate(np.where(kept & ~hidden, number, 0))
    return np.concatenate([[0], number])
