"""Resampling of users in one pass: every user counts a Poisson number of times."""

from __future__ import annotations

import numpy as np
from scipy import stats

from llm_influence.types import FloatArray, IntArray

_MOST = 12
"""Of a Poisson number of mean 1; larger ones have a chance of 6e-11."""


def user_weights(users: IntArray, resamples: int, seed: int) -> FloatArray:
    """(P, 1 + R) how often each row counts: once in column 0, a Poisson(1) number in the others.

    The bootstrap whose draws do not depend on how many users there are (Hanley and MacGibbon 2006,
    doi:10.1016/j.cmpb.2006.04.006), so sums over a stream can be resampled. A user's number comes
    from the user, the resample and the seed alone, so all rows of a user count alike in any batch.

    Args:
        users: (P,) codes of users.
        resamples: R.
        seed: Of the draws.
    """
    mixed = _mix(users.astype(np.uint64) + _mix(np.full(1, seed, dtype=np.uint64)))
    draws = _mix(mixed[:, None] + _mix(np.arange(1, resamples + 1, dtype=np.uint64)))
    chances = (draws >> np.uint64(11)).astype(np.float64) / 2**53
    numbers = np.searchsorted(stats.poisson(1).cdf(np.arange(_MOST)), chances, side="right")
    return np.column_stack([np.ones(len(users)), numbers.astype(np.float64)])


def _mix(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014): a stream of hashed counters."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
