"""What an explanation is: the events, their scores, and how far to trust them. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_influence.types import Event, FloatArray


@dataclass(frozen=True, slots=True)
class QualityCard:
    """How an explanation was made and how well it adds up.

    Attributes:
        method: The registry's name of the method.
        removal: What "without this event" meant: ``drop``, ``mask``, or ``none`` for methods that
            remove nothing.
        units: ``target`` when scores are in the target's own units (log-odds), ``share`` when
            they are shares of a whole.
        completeness_gap: ``|sum of scores - (full - base)| / |full - base|``; 0 is perfect. Only
            methods with units ``target`` promise anything about it.
        passes: Forward passes of the model spent on this explanation, a backward counting as one.
        seed: Seed of whatever the method drew at random.
        left_out: Older events that did not fit the context and could get no influence.
    """

    method: str
    removal: str
    units: Literal["target", "share"]
    completeness_gap: float
    passes: int
    seed: int
    left_out: int


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """How much each event of one history moved one target.

    Attributes:
        user_id: Whose history.
        events: The E events that were explained, oldest first.
        scores: (E,) influence by event; positive supports the target, negative opposes it.
        frame_score: What tokens outside every event received.
        target: Name of the target kind (``item``, ``behavior``, ``contrast``).
        target_id: The item id, behaviour, or ``"a over b"`` that was explained.
        target_name: The same for people.
        base_value: The target without any event (or at the method's baseline), log-odds.
        full_value: The target with all events, log-odds.
        prediction: Probability of the target with all events.
        quality: How the scores were made and how well they add up.
    """

    user_id: str
    events: Sequence[Event]
    scores: FloatArray
    frame_score: float
    target: str
    target_id: str
    target_name: str
    base_value: float
    full_value: float
    prediction: float
    quality: QualityCard

    def ranked(self) -> list[tuple[Event, float]]:
        """Events with their scores, most supporting first; ties keep the more recent first."""
        order = np.lexsort((-np.arange(len(self.events)), -self.scores))
        return [(self.events[i], float(self.scores[i])) for i in order]

    def gaps(self) -> list[int | None]:
        """Seconds since the event before, None for the first."""
        times = [event.timestamp for event in self.events]
        return [None, *(b - a for a, b in zip(times, times[1:], strict=False))][: len(times)]
