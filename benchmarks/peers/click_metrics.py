"""The area under the ROC curve, for programs that cannot import llm_influence.

The same as `llm_influence.evaluation.metrics` gives (a test holds the two together).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
