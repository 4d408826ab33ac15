"""Intervals of a mean over seeds, and of one system against another over the same users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_influence.evaluation.intervals import percentiles, resampled_means

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""A value with the ends of its 95% interval."""

STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t for 1, 2, 3... degrees of freedom."""


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of 2 to 10 runs with Student's 95% interval.

    Raises:
        ValueError: There are too few or too many values.
    """
    if not 2 <= len(values) <= len(STUDENT_T) + 1:
        raise ValueError(f"{len(values)} values; an interval needs 2 to {len(STUDENT_T) + 1}")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    half = STUDENT_T[len(values) - 2] * error
    return mean, mean - half, mean + half


def paired_bootstrap(ours: Floats, theirs: Floats, seed: int = 0) -> tuple[Interval, Interval]:
    """Difference and ratio of two systems' means, with 95% intervals over users.

    Users are drawn with replacement, the same ones for both systems.

    Args:
        ours: (N,) one number a user.
        theirs: (N,) of the same users in the same order; not all 0.
        seed: Seed of the draws.
    """
    users = np.arange(len(ours))
    one, other = resampled_means([ours, theirs], users, seed=seed)
    return (
        (float(ours.mean() - theirs.mean()), *percentiles(one - other)),
        (float(ours.mean() / theirs.mean()), *percentiles(one / other)),
    )
