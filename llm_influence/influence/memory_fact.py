"""Parts of a prediction that came through the memory, and what a sentence may state of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.influence.facts import tidy
from llm_influence.types import Event, FloatArray

_SHOWN = 3  # events of a kind that are listed
_LEAST_SHARE = 0.01  # share of the probability from which on the memory is mentioned
_LEAST_LOG_ODDS = 0.05  # log-odds from which on associations are mentioned
_STANDS_OUT = 0.1  # share that an event must cause to be named in a sentence


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What one event adds to the prediction of an item.

    Attributes:
        event: The event.
        share: Share of the item's probability that the event causes, by a transition or a repeat.
        log_odds: Log-odds that the event adds to the language model's prediction by association.
    """

    event: Event
    share: float
    log_odds: float


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Parts of the prediction of one item after a history.

    Attributes:
        item: Item id.
        title: Its title; the id for an item without title.
        probability: Probability that the item comes next.
        language: Share of the probability that comes from the language model.
        parts: One part for each event of the history that the model reads, in time order.
    """

    item: str
    title: str
    probability: float
    language: float
    parts: tuple[MemoryPart, ...]

    @classmethod
    def of(
        cls,
        events: Sequence[Event],
        target: tuple[str, str],
        probability: float,
        shares: FloatArray,
        log_odds: FloatArray,
    ) -> MemoryParts:
        """The parts from their columns.

        Args:
            events: The E events.
            target: Id and title of the item.
            probability: Probability that the item comes next.
            shares: (E,) shares by event.
            log_odds: (E,) log-odds by association.
        """
        parts = tuple(map(MemoryPart, events, shares.tolist(), log_odds.tolist()))
        return cls(*target, probability, float(1 - shares.sum()), parts)

    def __str__(self) -> str:
        """The lines, of which those of the events are indented."""
        first, *rest = self.lines()
        return "\n".join([first, *(f"  {line}" for line in rest)])

    def lines(self) -> list[str]:
        """The parts in words: the two shares, then the largest parts of the events of each kind.

        Associations change the language model's log-odds, so they are inside its share.
        """
        lines = [
            f"{self.title} ({self.probability:.1%}): {self.language:.0%} from the language model "
            f"with associations, {1 - self.language:.0%} from transitions and revisits"
        ]
        for part in sorted(self.parts, key=lambda part: -part.share)[:_SHOWN]:
            if part.share >= _LEAST_SHARE:
                name, behavior = part.event.name, part.event.behavior
                again = part.event.item == self.item
                what = "come back to it" if again else f"go on to {self.title}"
                lines.append(f"{part.share:.0%}: after {behavior} of {name}, people {what}")
        lines += [
            f"{part.log_odds:+.2f} log-odds by association with {part.event.name}"
            for part in sorted(self.parts, key=lambda part: -abs(part.log_odds))[:_SHOWN]
            if abs(part.log_odds) >= _LEAST_LOG_ODDS
        ]
        return lines


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
    if shares is None or not len(shares) or (total := float(shares.sum())) < _LEAST_SHARE:
        return None
    associated = log_odds is not None and abs(float(log_odds.sum())) >= _LEAST_LOG_ODDS
    place = len(shares) - 1 - int(np.argmax(shares[::-1]))  # of ties the more recent
    if shares[place] < max(_STANDS_OUT, total / 2):
        return MemoryFact(total, associated)
    event = events[place]
    again = event.item == target_id
    return MemoryFact(total, associated, tidy(event.name), event.behavior, again)
