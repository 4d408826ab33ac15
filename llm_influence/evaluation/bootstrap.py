"""How sure a mean is: bootstrap intervals over users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    """Percentile interval of the mean of ``values`` when whole groups are drawn with replacement.

    Rows of one user are alike, so users are drawn, each with all its rows. Of two systems asked
    the same rows, pass the differences row by row: the interval is then a paired one.

    Args:
        values: (N,) one value a row.
        groups: (N,) the row's user, as a whole number from 0.
        level: Share of the resampled means inside the interval.
        draws: Resamples.
        seed: Of the draws.

    Returns:
        The lower and the upper end.
    """
    (means,) = resampled_means([values], groups, draws=draws, seed=seed)
    return percentiles(means, level)


def resampled_means(
    columns: Sequence[FloatArray], groups: IntArray, *, draws: int = 10_000, seed: int = 0
) -> list[FloatArray]:
    """(draws,) means of each of the (N,) columns, the same groups drawn for all of them."""
    present = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(present).astype(np.float64)
    sums = [np.bincount(present, weights=column) for column in columns]
    draw, means = np.random.default_rng(seed), []
    for start in range(0, draws, BLOCK):
        size = (min(BLOCK, draws - start), len(counts))
        drawn = draw.integers(len(counts), size=size)
        rows = counts[drawn].sum(axis=1)
        means.append([column[drawn].sum(axis=1) / rows for column in sums])
    return [np.concatenate(parts) for parts in zip(*means, strict=True)]


def percentiles(means: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The two ends between which a share ``level`` of the values lies."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
