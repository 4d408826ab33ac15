"""Bootstrap over users of metrics that are no mean of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BLOCK = 100
"""Draws at a time; affects memory alone."""


def auc_draws(
    labels: npt.NDArray[np.bool_],
    scores: Floats,
    users: npt.NDArray[np.integer],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Floats:
    """(draws,) AUC when users are drawn with replacement, each with all its rows.

    The same seed draws the same users, so two systems can be compared draw by draw.

    Args:
        labels: (N,) both classes.
        scores: (N,) higher for what is more likely liked; equal scores count half.
        users: (N,) whose row it is.
        draws: Resamples.
        seed: Of the draws.
    """
    _, user = np.unique(users, return_inverse=True)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    sorted_user, sorted_label = user[order], labels[order]
    random, size, found = np.random.default_rng(seed), user.max() + 1, []
    for start in range(0, draws, BLOCK):
        drawn = random.integers(size, size=(min(BLOCK, draws - start), size))
        times = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)
        weights = times[:, sorted_user]
        ones = np.add.reduceat(weights * sorted_label, starts, axis=1)
        zeros = np.add.reduceat(weights * ~sorted_label, starts, axis=1)
        below = np.cumsum(zeros, axis=1) - zeros / 2
        found.append((ones * below).sum(axis=1) / (ones.sum(axis=1) * zeros.sum(axis=1)))
    return np.concatenate(found)
