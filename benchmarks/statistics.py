"""Intervals over seeds and users, for benchmarks that compare systems on the same examples.

Users are drawn with replacement, each with all examples. One seed draws the same users for every
system, so two systems are compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from llm_influence.numerics import percentiles, resampled_means

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""A value with the ends of its 95% interval."""
BLOCK = 100
"""Draws at a time; affects memory alone."""
DRAWS = 2000


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of at least two runs with Student's 95% interval.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values; an interval needs 2")
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float], draws: int = DRAWS) -> Interval:
    """Median with the 95% percentile interval of a bootstrap."""
    if len(set(values)) == 1:
        return (float(values[0]),) * 3
    found = stats.bootstrap(
        (np.asarray(values),), np.median, n_resamples=draws, method="percentile", rng=0
    ).confidence_interval
    return float(np.median(values)), float(found.low), float(found.high)


def compared(ours: float, theirs: float, one: Floats, other: Floats) -> tuple[Interval, Interval]:
    """Difference and ratio of two values, with intervals from their (D,) paired draws."""
    return (
        (ours - theirs, *percentiles(one - other)),
        (ours / theirs, *percentiles(one / other)),
    )


def mean_draws(rows: Floats, users: npt.NDArray[np.integer], draws: int = DRAWS) -> Floats:
    """(S, D) means of each of (S, N) rows under D draws of users."""
    return np.stack(resampled_means(list(rows), users, draws=draws))


def auc_draws(
    labels: npt.NDArray[np.bool_],
    scores: Floats,
    users: npt.NDArray[np.integer],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """(draws,) AUC when users are drawn with replacement, each with all rows.

    Args:
        labels: (N,) both classes.
        scores: (N,) higher for what is more likely liked; equal scores count half.
        users: (N,) the row's user.
        draws: Resamples.
        seed: Of the draws.
    """
    _, user = np.unique(users, return_inverse=True)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    sorted_user, sorted_label = user[order], np.asarray(labels, dtype=bool)[order]
    random, size, parts = np.random.default_rng(seed), user.max() + 1, []
    for start in range(0, draws, BLOCK):
        drawn = random.integers(size, size=(min(BLOCK, draws - start), size))
        times = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)
        weights = times[:, sorted_user]
        ones = np.add.reduceat(weights * sorted_label, starts, axis=1)
        zeros = np.add.reduceat(weights * ~sorted_label, starts, axis=1)
        below = np.cumsum(zeros, axis=1) - zeros / 2
        parts.append((ones * below).sum(axis=1) / (ones.sum(axis=1) * zeros.sum(axis=1)))
    return np.concatenate(parts)


def over_seeds(draws: Floats) -> Floats:
    """(D,) means of (S, D) draws over seeds that are drawn with replacement as well."""
    seeds, count = draws.shape
    chosen = np.random.default_rng(0).integers(seeds, size=(count, seeds))
    return draws[chosen, np.arange(count)[:, None]].mean(axis=1)


def mean_over_users_and_seeds(rows: Floats, users: npt.NDArray[np.integer]) -> Interval:
    """Mean of (S, N) rows of S seeds with its interval over users and seeds."""
    return float(rows.mean()), *percentiles(over_seeds(mean_draws(rows, users)))
