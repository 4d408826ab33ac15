"""Ranks, NDCG and AUC for programs that cannot import llm_influence.

The same as `llm_influence.evaluation.metrics`; a test compares the two. Every item of the catalogue
is a candidate but those of the history; equal scores are ordered by row of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MISSED = np.iinfo(np.int64).max
"""Rank of a target that is no candidate, because the history holds it already."""


def target_ranks(
    scores: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    histories: Sequence[npt.NDArray[np.integer]],
) -> npt.NDArray[np.int64]:
    """(B,) rank of each target, 1 is best.

    Args:
        scores: (B, I), -inf for items that the model does not know.
        targets: (B,) rows of the catalogue.
        histories: B arrays of rows of the catalogue; their items are no candidates.
    """
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < targets[:, None]))
    missed = np.zeros(len(scores), dtype=bool)
    for row, history in enumerate(histories):
        before[row, history] = False
        missed[row] = targets[row] in history
    return np.where(missed, MISSED, before.sum(axis=1) + 1)


def ndcg(ranks: npt.NDArray[np.integer], cutoff: int = 10) -> float:
    """Mean NDCG@K of one relevant item a row."""
    gains = 1 / np.log2(1 + ranks.astype(np.float64))
    return float(np.where(ranks <= cutoff, gains, 0).mean())


def auc(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """How often a positive scores above a negative; equal scores count half.

    Args:
        labels: (N,) with both classes.
        scores: (N,) any increasing function of the probability.
    """
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places]  # equal scores share the mean of their ranks
    positive = int(labels.sum())
    above = ranks[labels].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(labels) - positive)))
