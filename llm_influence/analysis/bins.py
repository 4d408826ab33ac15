"""The ranges into which gaps, ages, positions, hours and sessions are cut, with their names.

One home, so that the report, the factors and the decay curves speak of the same groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llm_influence.types import IntArray

MINUTE, HOUR, DAY = 60, 3_600, 86_400
SESSION_GAP = 30 * MINUTE
"""A longer pause than this begins a new session."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Ranges of a number; the last is open.

    Attributes:
        edges: (K,) lower edges, increasing.
        labels: (K,) names of the ranges.
        missing: What a row without the number is called; None if every row has one.
    """

    edges: tuple[int, ...]
    labels: tuple[str, ...]
    missing: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names in order, ``missing`` first."""
        return self.labels if self.missing is None else (self.missing, *self.labels)

    def codes(self, numbers: IntArray) -> IntArray:
        """(N,) places in ``names``; where there is a ``missing``, negative numbers are missing."""
        places = np.searchsorted(np.array(self.edges), numbers, side="right")
        return places - (self.missing is None)

    def sql(self, number: str) -> str:
        """SQL that gives the name of ``number``'s range as text; null takes ``missing``."""
        cuts = zip(self.edges[1:], self.labels[:-1], strict=True)
        cases = " ".join(f"WHEN {number} < {edge} THEN {quoted(label)}" for edge, label in cuts)
        none = "NULL" if self.missing is None else quoted(self.missing)
        return f"CASE WHEN {number} IS NULL THEN {none} {cases} ELSE {quoted(self.labels[-1])} END"

    def codes_sql(self, number: str) -> str:
        """SQL that gives the place of ``number``'s range in ``names``."""
        shift = self.missing is not None
        cuts = enumerate(self.edges[1:], start=int(shift))
        cases = " ".join(f"WHEN {number} < {edge} THEN {code}" for code, edge in cuts)
        none = "0" if shift else "NULL"
        return f"CASE WHEN {number} IS NULL THEN {none} {cases} ELSE {len(self.names) - 1} END"


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _counted(edges: tuple[int, ...]) -> tuple[str, ...]:
    """Names of ranges of a count from 0, said from 1: ``1``, ``2 to 3``, ``over 5``."""
    names = [
        f"{low + 1}" if high == low + 1 else f"{low + 1} to {high}" for low, high in pairwise(edges)
    ]
    return (*names, f"over {edges[-1]}")


GAPS = Buckets(
    (0, 1, MINUTE, HOUR, DAY, 7 * DAY, 30 * DAY),
    (
        *("same moment", "under a minute", "under an hour", "under a day", "under a week"),
        *("under a month", "a month or more"),
    ),
    missing="first event",
)
"""Seconds since the event before."""

_RECENCY = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200)
RECENCY = Buckets(_RECENCY, _counted(_RECENCY))
"""Events behind this one in its history: ``1`` is the latest event."""

AGES = Buckets(
    (0, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 3 * DAY, 7 * DAY, 30 * DAY, 90 * DAY),
    (
        *("under a minute", "1 to 10 minutes", "10 to 60 minutes", "1 to 6 hours"),
        *("6 to 24 hours", "1 to 3 days", "3 to 7 days", "7 to 30 days", "30 to 90 days"),
        "over 90 days",
    ),
)
"""Seconds from the event to the last one of its history."""

SESSIONS = Buckets(
    (0, 1, 2, 4, 10), ("last session", "1 back", "2 to 3 back", "4 to 9 back", "10 or more back")
)
"""Sessions that began after the event."""

DAY_PARTS = Buckets(
    tuple(range(0, 24, 4)), tuple(f"{hour:02}:00-{hour + 3:02}:59" for hour in range(0, 24, 4))
)
"""Hour of the day, UTC."""

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
