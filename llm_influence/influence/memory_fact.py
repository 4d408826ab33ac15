"""What a sentence may state about the memory of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.influence.facts import tidy
from llm_influence.types import Event, FloatArray

_THROUGH_MEMORY = 0.01  # share of the probability from which on the memory is mentioned
_STANDS_OUT = 0.1  # share that an event must cause to be named
_ASSOCIATED = 0.05  # log-odds from which on associations are mentioned


@dataclass(frozen=True)
class MemoryFact:
    """What a sentence may state about the memory.

    Attributes:
        share: Share of the item's probability that events cause by transitions and repeats: the
            sum of `Influence.memory_shares`, at least 1%.
        associated: Whether associations add 0.05 log-odds or more, of either sign, to the rest.
        name: Name of the event that stands out: it causes at least 10% of the probability, and at
            least half of ``share``. Empty without such an event.
        behavior: Behaviour of that event.
        again: Whether its item is the target, so that people come back to it.
    """

    share: float
    associated: bool
    name: str = ""
    behavior: str = ""
    again: bool = False


def memory_fact(
    events: Sequence[Event],
    target_id: str,
    shares: FloatArray | None,
    log_odds: FloatArray | None,
) -> MemoryFact | None:
    """The fact about the memory; None where it has less than 1% of the probability.

    Args:
        events: The E events.
        target_id: Id of the explained item.
        shares: (E,) shares by event, None without memory.
        log_odds: (E,) log-odds by association.
    """
    if shares is None or not len(shares) or (total := float(shares.sum())) < _THROUGH_MEMORY:
        return None
    associated = log_odds is not None and abs(float(log_odds.sum())) >= _ASSOCIATED
    place = len(shares) - 1 - int(np.argmax(shares[::-1]))  # of ties the more recent
    if shares[place] < max(_STANDS_OUT, total / 2):
        return MemoryFact(total, associated)
    event = events[place]
    again = event.item == target_id
    return MemoryFact(total, associated, tidy(event.name), event.behavior, again)
