"""Rank correlation that says so where there is nothing to correlate."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from llm_influence.types import FloatArray

FEWEST = 3
"""Below this many points a rank correlation says nothing."""
NOISE = 1e-6
"""Numbers that differ by less than this part of their size are equal: the rest is rounding."""


def spearman(values: FloatArray, scores: FloatArray) -> float:
    """Spearman's rank correlation of two (n,) arrays.

    nan below three points or where ``values`` are all the same; 0 where only ``scores`` are: a
    method that says nothing has foretold nothing.
    """
    if len(values) < FEWEST or _constant(values):
        return float("nan")
    return 0.0 if _constant(scores) else float(spearmanr(values, scores).statistic)


def _constant(numbers: FloatArray) -> bool:
    return bool(np.ptp(numbers) <= NOISE * np.abs(numbers).max())
