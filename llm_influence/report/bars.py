"""Where a bar starts and how long it is. Lengths are in proportion to scores, always."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# Even a history that only supports keeps a little room left of zero, so that zero is visible.
_LEAST_SIDE = 0.08
# Below this a score has no length: dividing by it would overflow.
_NOTHING = 1e-200


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar on its track, in percent of the track's width.

    Attributes:
        left: Where it begins.
        width: How long it is.
        kind: ``for``, ``against`` or ``share``; names the colour.
    """

    left: float
    width: float
    kind: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A track with a zero on it, as much room on each side as the scores need.

    Attributes:
        zero: Where zero is, in percent of the track.
        unit: Percent of the track for a score of 1; the same on both sides.
        share: Scores are shares: they have no side.
    """

    zero: float
    unit: float
    share: bool = False

    @classmethod
    def fit(cls, scores: ArrayLike, *, share: bool = False) -> Scale:
        """The scale on which the longest bar of ``scores`` reaches the end of its side."""
        values = np.asarray(scores, dtype=np.float64)
        up, down = max(values.max(initial=0.0), 0.0), max(-values.min(initial=0.0), 0.0)
        if up + down < _NOTHING:
            return cls(zero=0.0 if share else 50.0, unit=0.0, share=share)
        zero = 0.0 if share and not down else down / (up + down)
        if not share:
            zero = min(max(zero, _LEAST_SIDE), 1 - _LEAST_SIDE)
        room = [zero / down] if down else []
        room += [(1 - zero) / up] if up else []
        return cls(zero=100 * zero, unit=100 * min(room), share=share)

    def bar(self, score: float) -> Bar:
        """The bar of a score."""
        width = abs(score) * self.unit
        kind = "share" if self.share else "against" if score < 0 else "for"
        return Bar(self.zero - width if score < 0 else self.zero, width, kind)
