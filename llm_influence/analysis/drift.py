"""Drift: does an event of one kind count more or less as the calendar goes on?

A window holds the predictions made in it. Influence fades with age, and histories of one window may
be older than those of another, so what is followed is the residual against the group's mean at each
age, over all windows. Change points are found by binary segmentation (Scott and Knott 1974;
Vostrikova 1981): the split that explains most is kept if it is more than chance, and each side is
split again, against its own mean at each age. Chance is what remains when signs are drawn at random
for parts of the users, with the largest of all splits taken each time (the wild bootstrap, Wu 1986;
the largest statistic, Westfall and Young 1993), so looking at every split is paid for. Both sides
of a split get half of its error level, so that all segments together keep to it (Kraft's
inequality), and groups share it evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_influence.analysis.event_cells import Cells
from llm_influence.analysis.statistics import (
    LEAST_PARTS,
    correction,
    critical,
    divide,
    half_widths,
    means,
    occupied,
)
from llm_influence.types import FloatArray

DRAWS = 19_999


@dataclass(frozen=True, slots=True)
class Change:
    """A change point.

    Attributes:
        window: The first window after the change.
        before: Mean influence of the windows before it, back to the change before.
        after: Of the windows from it to the next change.
        half: Half the width of the 95% interval of their difference.
        p_value: Of no change between them, for all groups that are looked at together.
    """

    window: int
    before: float
    after: float
    half: float
    p_value: float


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """One group over the calendar.

    Attributes:
        cells: The group.
        values: (W,) mean influence at the group's usual ages; nan without events.
        halves: (W,) half the width of its 95% interval; nan with too few users.
        events: (W,) how many.
        changes: In order of time.
    """

    cells: Cells
    values: FloatArray
    halves: FloatArray
    events: FloatArray
    changes: tuple[Change, ...]


def drift_of(cells: Cells, *, groups: int, alpha: float, seed: int) -> Drift:
    """Follow one group.

    Args:
        cells: The group.
        groups: How many are looked at.
        alpha: Chance of any false alarm among them.
        seed: Of the signs.
    """
    events = cells.window_events.sum(axis=2)
    level = cells.totals.sum() / cells.events.sum()
    middle, error = means(_residuals(cells.window_totals, cells.window_events), events)
    signs = np.random.default_rng(seed).integers(0, 2, size=(DRAWS, len(events))) * 2.0 - 1
    segments = _Segments(cells.window_totals, cells.window_events, signs)
    segments.search(0, len(middle), alpha / groups)
    bounds = [0, *sorted(segments.found), len(middle)]
    changes = [
        segments.change(first, window, end, groups)
        for first, window, end in zip(bounds, bounds[1:], bounds[2:], strict=False)
    ]
    return Drift(
        cells,
        level + middle,
        half_widths(error, occupied(events)),
        events.sum(axis=0),
        tuple(changes),
    )


class _Segments:
    """Binary segmentation of W windows.

    Attributes:
        found: First windows after changes, and the p-value of each, for all segments together.
    """

    def __init__(self, totals: FloatArray, events: FloatArray, signs: FloatArray) -> None:
        self._totals, self._events, self._signs = totals, events, signs
        self.found: dict[int, float] = {}

    def search(self, first: int, end: int, alpha: float, halvings: int = 0) -> None:
        """Split the windows from ``first`` to before ``end``, and both sides again."""
        if end - first < 2:
            return
        totals, events = self._within(first, end)
        (t_left, t_right), (n_left, n_right) = _sides(totals), _sides(events)
        enough = np.minimum(occupied(n_left), occupied(n_right)) >= LEAST_PARTS
        if not enough.any() or not totals.any():
            return
        split, p_value = self._test(t_left, t_right, n_left, n_right, enough)
        if p_value <= alpha:
            self.found[first + split] = p_value * 2**halvings
            self.search(first, first + split, alpha / 2, halvings + 1)
            self.search(first + split, end, alpha / 2, halvings + 1)

    def _within(self, first: int, end: int) -> tuple[FloatArray, FloatArray]:
        """(P, W) residuals and events of some windows, against their own mean at each age."""
        totals, events = self._totals[:, first:end], self._events[:, first:end]
        return _residuals(totals, events), events.sum(axis=2)

    def _test(
        self,
        t_left: FloatArray,
        t_right: FloatArray,
        n_left: FloatArray,
        n_right: FloatArray,
        enough: np.ndarray,
    ) -> tuple[int, float]:
        """The best split, 1 being before the second window, and the p-value of no change."""
        places = np.flatnonzero(enough)
        t_left, t_right, n_left, n_right = (
            each[:, places] for each in (t_left, t_right, n_left, n_right)
        )
        mean = (t_left + t_right).sum(axis=0) / (n_left + n_right).sum(axis=0)
        below, above = n_left.sum(axis=0), n_right.sum(axis=0)
        # What each part of the users adds to the difference, were there no change.
        added = (t_right - n_right * mean) / above - (t_left - n_left * mean) / below
        gain = added.sum(axis=0) ** 2 * below * above / (below + above)
        scale = np.sqrt((added**2).sum(axis=0))
        scaled = divide(added, np.broadcast_to(scale, added.shape))
        scaled = np.nan_to_num(scaled)
        largest = np.abs(scaled.sum(axis=0)).max()
        drawn = np.abs(self._signs @ scaled).max(axis=1)
        # Sums in another order differ in their last digits; what equals is no less.
        p_value = (1 + (drawn >= largest * (1 - 1e-9)).sum()) / (1 + len(drawn))
        return 1 + int(places[gain.argmax()]), float(p_value)

    def change(self, first: int, window: int, end: int, groups: int) -> Change:
        """What changed at a window, between the change before it and the next one."""
        within = self._within(first, end)
        cut = [(each[:, : window - first], each[:, window - first :]) for each in within]
        totals, events = ([side.sum(axis=1) for side in each] for each in cut)
        level = self._totals[:, first:end].sum() / self._events[:, first:end].sum()
        before, after = (t.sum() / n.sum() for t, n in zip(totals, events, strict=True))
        added = (totals[1] - events[1] * after) / events[1].sum()
        added -= (totals[0] - events[0] * before) / events[0].sum()
        parts = (events[0] + events[1] > 0).sum()
        half = critical(parts) * np.sqrt(correction(parts) * (added**2).sum())
        p_value = min(1.0, self.found[window] * groups)
        return Change(window, level + before, level + after, float(half), p_value)


def _residuals(totals: FloatArray, events: FloatArray) -> FloatArray:
    """(P, W) what (P, W, C) sums have beyond the mean at each age over all of them."""
    usual = divide(totals.sum(axis=(0, 1)), events.sum(axis=(0, 1)))
    residuals: FloatArray = totals.sum(axis=2) - events @ np.nan_to_num(usual)
    return residuals


def _sides(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(P, W - 1) sums of the windows before and after each split."""
    left = values.cumsum(axis=1)
    return left[:, :-1], left[:, -1:] - left[:, :-1]
