"""Bootstrap intervals of a mean, with users as the unit that is resampled (`scipy.stats`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from llm_influence.types import FloatArray, IntArray

BLOCK = 500
"""Resamples drawn at a time; affects memory alone."""


def bootstrap_interval(
    values: FloatArray,
    groups: IntArray,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``, with whole groups resampled.

    Rows of one user are alike, so users are drawn with replacement, each with all its rows. For
    two systems with the same rows pass the differences by row: the interval is then paired.

    Args:
        values: (N,) one value a row.
        groups: (N,) the row's user, an integer.
        level: Share of the resampled means inside the interval.
        draws: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The lower and the upper end.
    """
    return percentiles(resampled_means([values], groups, draws=draws, seed=seed)[0], level)


def resampled_means(
    columns: Sequence[FloatArray], groups: IntArray, *, draws: int = 10_000, seed: int = 0
) -> FloatArray:
    """(C, draws) means of C columns of N values; a resample draws the same groups for all columns.

    Use it for intervals of a ratio of two means; for a single mean see `bootstrap_interval`.
    """
    present = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(present)
    sums = np.stack([np.bincount(present, weights=column) for column in columns])
    if len(counts) == 1:  # scipy refuses a single group, whose resamples are all the same
        return np.repeat(sums / counts, draws, axis=1)
    result = stats.bootstrap(
        (sums, counts[None]),
        lambda total, rows, axis: total.sum(axis=axis) / rows.sum(axis=axis),
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=draws,
        batch=BLOCK,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.bootstrap_distribution


def percentiles(means: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The two ends between which a share ``level`` of the values lies."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
