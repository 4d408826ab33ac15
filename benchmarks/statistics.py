"""Intervals of a mean over seeds, and of one system against another over the same users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_influence.evaluation.bootstrap import percentiles, resampled_means

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


def means_over_users_and_seeds(differences: Floats, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of (S, N) differences of S seeds and N users, with its 95% interval over both.

    Seeds and users are drawn with replacement, the same users for every seed.
    """
    draw = np.random.default_rng(seed)
    seeds, users = differences.shape
    found = np.empty(draws)
    for n in range(draws):
        chosen = draw.integers(seeds, size=seeds)
        weights = np.bincount(draw.integers(users, size=users), minlength=users)
        found[n] = differences[chosen].mean(axis=0) @ weights / users
    return float(differences.mean()), *percentiles(found)


def auc_over_users_and_seeds(
    labels: Floats, systems: Sequence[Floats], users: npt.NDArray[np.int64], draws: int = 1000
) -> list[Interval]:
    """AUC of each system and, behind the first, its difference from the first.

    Every interval is of 95%, over users and seeds drawn with replacement, the same ones for all
    systems; an AUC is the mean over the drawn seeds.

    Args:
        labels: (N,) 0 or 1.
        systems: (S, N) scores of each, in S seeds.
        users: (N,) whose row it is, numbers from 0.
        draws: Of the bootstrap.

    Returns:
        The first system's AUC, then AUC and difference of each further one.
    """
    draw = np.random.default_rng(0)
    seeds, count = len(systems[0]), int(users.max()) + 1
    codes = [[np.unique(run, return_inverse=True)[1] for run in runs] for runs in systems]
    everyone = np.ones(len(labels))
    whole = np.array([[weighted_auc(labels, c, everyone) for c in runs] for runs in codes])
    found = np.empty((draws, len(systems)))
    for n in range(draws):
        weights = np.bincount(draw.integers(count, size=count), minlength=count)[users]
        chosen = draw.integers(seeds, size=seeds)
        found[n] = [
            np.mean([weighted_auc(labels, runs[s], weights) for s in chosen]) for runs in codes
        ]
    means = whole.mean(axis=1)
    intervals = [(float(means[0]), *percentiles(found[:, 0]))]
    for system in range(1, len(systems)):
        apart = found[:, system] - found[:, 0]
        intervals.append((float(means[system]), *percentiles(found[:, system])))
        intervals.append((float(means[system] - means[0]), *percentiles(apart)))
    return intervals


def weighted_auc(labels: Floats, codes: npt.NDArray[np.int64], weights: Floats) -> float:
    """AUC of (N,) labels, 0 or 1, by (N,) ranks in which ties are equal, each counted by weight."""
    ones = np.bincount(codes, weights=weights * labels)
    zeros = np.bincount(codes, weights=weights * (1 - labels))
    below = np.cumsum(zeros) - zeros / 2
    return float(ones @ below / (ones.sum() * zeros.sum()))
