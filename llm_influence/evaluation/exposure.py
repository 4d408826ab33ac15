"""What recommendations show people: how much of the catalogue, and how popular it is."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from llm_influence.types import IntArray


def exposure_metrics(
    top: IntArray, targets: IntArray, counts: IntArray, cutoff: int
) -> dict[str, float]:
    """Coverage and popularity of the first K recommendations.

    Args:
        top: (N, K) recommended item codes, -1 where a row has fewer.
        targets: (N,) item codes that really came.
        counts: (I,) events of training by item.
        cutoff: K, for the names.

    Returns:
        ``coverage@K``: share of the catalogue that stands in any row. ``popularity@K``: mean
        popularity of what is recommended; ``target_popularity``: the same of what came. An item's
        popularity is its percentile by training events, items with equally many sharing the mean.
    """
    percentile = (rankdata(counts) - 0.5) / len(counts)
    shown = top[top >= 0]
    return {
        f"coverage@{cutoff}": float(len(np.unique(shown)) / len(counts)),
        f"popularity@{cutoff}": float(percentile[shown].mean()),
        "target_popularity": float(percentile[targets].mean()),
    }
