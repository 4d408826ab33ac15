"""Adaptive quadrature that knows its error.

The integral of a function's derivative over an interval is the difference of the function at the
interval's ends, and the function is known wherever its derivative was computed. So the error of
Simpson's rule on every interval is known exactly, and only intervals that matter are halved.
Halving uses all points again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llm_influence.types import FloatArray

FIRST = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points of the first two intervals; real models have always needed them."""


@dataclass(slots=True)
class Path:
    """One row's way from its baseline (0) to its input (1).

    Attributes:
        values: The function by point; points are sums of powers of two, so they are exact.
        scores: What is integrated by point: arrays whose sum is the function's derivative.
        wanted: Points to be computed next.
    """

    values: dict[float, float] = field(default_factory=dict)
    scores: dict[float, FloatArray] = field(default_factory=dict)
    wanted: list[float] = field(default_factory=lambda: list(FIRST))
    _intervals: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.5), (0.5, 1.0)])

    def refine(self, tolerance: float, room: int) -> None:
        """Want the points that must be computed yet, if any, now that all wanted ones are known.

        The errors of all intervals, taken as positive, shall add up to at most ``tolerance`` times
        the whole difference. The worst intervals without which the others would meet that are
        halved: even if all but one of them became exact, the rest would still be too much.

        Args:
            tolerance: Part of the whole difference.
            room: Most points that may still be computed.
        """
        self.wanted = []
        errors = np.abs([self._error(a, b) for a, b in self._intervals])
        allowed = tolerance * abs(self.values[1.0] - self.values[0.0])
        for number in np.argsort(-errors, kind="stable"):
            if errors.sum() <= allowed or room < 2:
                break
            room, errors[number] = room - 2, 0.0
            low, high = self._intervals[number]
            middle = (low + high) / 2
            self._intervals[number] = (low, middle)
            self._intervals.append((middle, high))
            self.wanted += [(low + middle) / 2, (middle + high) / 2]

    def integral(self) -> FloatArray:
        """The integral of the scores, by Simpson's rule on every interval."""
        return np.sum([self._simpson(self.scores, a, b) for a, b in self._intervals], axis=0)

    def _error(self, low: float, high: float) -> float:
        found = self._simpson(self.scores, low, high).sum()
        return float(found - (self.values[high] - self.values[low]))

    @staticmethod
    def _simpson(of: dict[float, FloatArray], low: float, high: float) -> FloatArray:
        middle = (low + high) / 2
        return (of[low] + 4 * of[middle] + of[high]) * ((high - low) / 6)
