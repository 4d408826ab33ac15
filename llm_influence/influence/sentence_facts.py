"""What a sentence may state of an explanation: chosen from the numbers, before any word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from llm_influence.influence.facts import Kind, QualityCard, score_kind, tidy
from llm_influence.influence.slate_change import SlateChange
from llm_influence.types import Event, FloatArray, IntArray

_WORTH_CITING = 0.1  # part of the strongest score that a further event must have to be named
_ADDS_UP = 0.05  # largest completeness gap at which scores are added up
INTERVAL = 1.96
"""Standard errors on each side of a 95% interval."""


@dataclass(frozen=True)
class Cited:
    """One event that a sentence names.

    Attributes:
        name: Title or item id on one line.
        behavior: What the user did; None if the model does not read it.
        value: Rating or amount; None if there is none, or the model does not read it.
        score: Its influence.
        seconds_before: Seconds before the latest event; None if the model reads no times.
        events_after: Number of later events.
    """

    name: str
    behavior: str | None
    value: float | None
    score: float
    seconds_before: int | None
    events_after: int


@dataclass(frozen=True)
class Together:
    """The events that were scored together.

    Attributes:
        events: Number of events.
        older: Whether all of them are before every other event.
        score: Sum of their scores.
        error: Half of the 95% interval of the sum; 0 if it is exact.
    """

    events: int
    older: bool
    score: float
    error: float


@dataclass(frozen=True)
class Target:
    """The target of a sentence, as in `Influence`.

    Attributes:
        kind: Kind of the target.
        name: The target for people.
        prediction: Its probability; nan where it has none.
        value: Its value with all events.
        unit: Unit of the scores.
        recommended: Whether it is on the list of recommendations.
        place: Its rank among the candidates and their number; None where it has none.
    """

    kind: str
    name: str
    prediction: float
    value: float
    unit: str
    recommended: bool
    place: tuple[int, int] | None


@dataclass(frozen=True)
class Facts:
    """Everything that a sentence may state.

    Attributes:
        kind: What the scores are; see `score_kind`.
        method: Name of the method.
        target: The target.
        adds_up: Whether the scores may be added up.
        events: Number of events in the history.
        supporting: Strongest events with a positive score above its error, strongest first.
        opposing: The same with a negative score.
        together: The events that were scored together; None without any.
        balance: Sign of the sum of the scores; None where every score is 0.
        carries: Part of the support that the named events hold: ``all``, ``most`` or the ``top``.
        total: The whole that the scores are parts of; None where they do not add up to one.
        unsettled: Half of the largest 95% interval, where the method did not reach its tolerance.
        change: The event whose removal changes a slate most, and how; None for other targets.
    """

    kind: Kind
    method: str
    target: Target
    adds_up: bool
    events: int
    supporting: tuple[Cited, ...]
    opposing: tuple[Cited, ...]
    together: Together | None
    balance: int | None
    carries: Literal["all", "most", "top"]
    total: float | None
    unsettled: float | None
    change: tuple[Cited, SlateChange] | None

    @property
    def in_percent(self) -> bool:
        """Whether scores are shares of a whole."""
        return self.target.unit == "share"


def choose_facts(
    events: Sequence[Event],
    scores: FloatArray,
    errors: FloatArray | None,
    block: Sequence[int],
    *,
    card: QualityCard,
    target: Target,
    moved: float,
    unread: Sequence[str],
    most: int,
    change: SlateChange | None = None,
) -> Facts:
    """Choose what a sentence may state about an explanation.

    An event is named only if its score is above its error, and if it was scored alone.

    Args:
        events: The E events of the history, oldest first.
        scores: (E,) influence of each.
        errors: (E,) standard errors; None for a method without them.
        block: Places of the events that were scored together.
        card: How the scores were made.
        target: The target.
        moved: Value of the target with all events, less that without any.
        unread: Fields among ``behavior``, ``value`` and ``time`` that the model does not read.
        most: Largest number of events named on each side, at least 1.
        change: What the removal of one event changes on a slate; None for other targets.
    """
    scores = np.asarray(scores, dtype=np.float64)
    spread = np.zeros(len(scores)) if errors is None else INTERVAL * np.nan_to_num(errors)
    named = np.where(np.abs(scores) > spread, scores, 0.0)
    named[list(block)] = 0.0
    supporting, opposing = _strongest(named, most), _strongest(-named, most)
    kind = score_kind(card.method, card.units)
    adds_up = kind == "effect" and (card.completeness_gap <= _ADDS_UP or not scores.any())
    if len(supporting) and len(opposing) and (scores.sum() > 0 or not adds_up):
        opposing = opposing[-named[opposing] >= _WORTH_CITING * np.abs(named).max()]
    best = named[supporting]
    whole = adds_up and len(best) and best.max() <= moved
    cite = partial(_cite, events, unread)
    players = np.delete(scores, list(block))
    together = _together(scores, spread, block)
    if together is not None:
        players = np.append(players, together.score)
    return Facts(
        kind=kind,
        method=card.method,
        target=target,
        adds_up=adds_up,
        events=len(scores),
        supporting=cite(named, supporting),
        opposing=cite(named, opposing),
        together=together,
        balance=int(np.sign(scores.sum())) if scores.any() else None,
        carries=_carries(players, best),
        total=moved if whole else None,
        unsettled=float(spread.max()) if card.converged is False and spread.any() else None,
        change=None if change is None else (cite(scores, np.array([change.event]))[0], change),
    )


def _together(scores: FloatArray, spread: FloatArray, block: Sequence[int]) -> Together | None:
    if not block:
        return None
    places = list(block)
    older = places == list(range(len(places)))
    return Together(len(places), older, float(scores[places].sum()), float(spread[places].sum()))


def _strongest(scores: FloatArray, most: int) -> IntArray:
    """Places of the highest positive scores, highest first; ties keep the more recent first."""
    order = np.lexsort((-np.arange(len(scores)), -scores))[:most]
    order = order[scores[order] > 0]
    return order[scores[order] >= _WORTH_CITING * scores[order[0]]] if len(order) else order


def _cite(
    events: Sequence[Event], unread: Sequence[str], scores: FloatArray, places: IntArray
) -> tuple[Cited, ...]:
    return tuple(
        Cited(
            name=tidy(event.name),
            behavior=None if "behavior" in unread else event.behavior,
            value=None if "value" in unread else event.value,
            score=float(scores[place]),
            seconds_before=None if "time" in unread else events[-1].timestamp - event.timestamp,
            events_after=len(events) - 1 - int(place),
        )
        for place in places
        for event in (events[place],)
    )


def _carries(scores: FloatArray, named: FloatArray) -> Literal["all", "most", "top"]:
    positive = scores[scores > 0]
    if len(positive) == len(named):
        return "all"
    return "most" if 2 * named.sum() > positive.sum() else "top"
