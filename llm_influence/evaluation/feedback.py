"""How good predicted feedback is: order within everyone and within each user, and calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from llm_influence.types import FloatArray, IntArray

BINS = 15
"""Bins of the calibration error, each with as many rows as the others where scores differ."""


def feedback_metrics(
    labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike
) -> dict[str, float]:
    """AUC, GAUC, log loss, calibration error and Brier score of binary feedback.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) log-odds of a 1, ``log p - log(1 - p)``; they may be infinite.
        users: (N,) whose row it is, any values that can be told apart.

    Returns:
        ``auc``: chance that a 1 stands before a 0, a tie counting half. ``gauc``: the same within
        each user, averaged by rows over the users with both labels (Zhou et al. 2018,
        arXiv:1706.06978). ``log_loss`` in nats. ``ece``: expected calibration error over `BINS`
        bins of equal mass (Naeini et al. 2015; Nguyen & O'Connor 2015); equal scores are never
        parted. ``brier``: mean squared error of the probability. What is not defined is nan: AUC
        of one sort of labels, GAUC where no user has both.
    """
    ones, logits = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    groups = np.unique(np.asarray(users), return_inverse=True)[1]
    chances = expit(logits)
    losses = np.where(ones > 0, np.logaddexp(0, -logits), np.logaddexp(0, logits))
    each, rows = auc_by_group(ones, logits, groups)
    both = ~np.isnan(each)
    return {
        "auc": float(auc_by_group(ones, logits, np.zeros(len(ones), np.int64))[0][0]),
        "gauc": float(np.average(each[both], weights=rows[both])) if both.any() else float("nan"),
        "log_loss": float(losses.mean()),
        "ece": calibration_error(ones, chances),
        "brier": float(np.mean((chances - ones) ** 2)),
    }


def value_metrics(labels: npt.ArrayLike, values: npt.ArrayLike) -> dict[str, float]:
    """Root mean squared and mean absolute error of (N,) expected labels."""
    errors = np.asarray(values, np.float64) - np.asarray(labels, np.float64)
    return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.abs(errors).mean())}


def auc_by_group(
    ones: FloatArray, scores: FloatArray, groups: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Area under the ROC curve of each group, by the rank sum of its ones.

    Args:
        ones: (N,) 0 or 1.
        scores: (N,) higher for what is more likely a 1.
        groups: (N,) numbers from 0 to G - 1, each there.

    Returns:
        (G,) areas, nan where a group has one sort of label, and (G,) rows of the groups.
    """
    order = np.lexsort((scores, groups))
    group, score, one = groups[order], scores[order], ones[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    first = np.flatnonzero(new)  # of each run of equal scores
    last = np.append(first[1:], len(order)) - 1
    middle = ((first + last) / 2)[np.cumsum(new) - 1]  # equal scores share their mean place
    rows = np.bincount(group).astype(np.float64)
    starts = np.cumsum(rows) - rows
    ranks = middle - starts[group] + 1
    positive = np.bincount(group, weights=one)
    pairs = positive * (rows - positive)
    above = np.bincount(group, weights=ranks * one) - positive * (positive + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan), rows


def calibration_error(ones: FloatArray, chances: FloatArray, bins: int = BINS) -> float:
    """Mean distance of a bin's mean (N,) chance from its share of (N,) ones, by rows."""
    edges = np.quantile(chances, np.arange(1, bins) / bins, method="lower")
    bin_of = np.searchsorted(np.unique(edges), chances, side="left")
    apart = np.bincount(bin_of, weights=chances - ones)
    return float(np.abs(apart).sum() / len(ones))
