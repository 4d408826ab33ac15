"""Shapley values as a weighted regression (Charnes et al. 1988; Lundberg and Lee 2017)."""

from __future__ import annotations

import numpy as np

from llm_influence.types import BoolArray, FloatArray


def regress(masks: BoolArray, values: FloatArray) -> FloatArray:
    """(n,) Shapley values from coalitions drawn by `coalitions.by_leverage`.

    Args:
        masks: (M, n) distinct coalitions, the empty and the full one first, M >= n + 1.
        values: (M,) their values.

    Returns:
        The scores that fit best among those which add up to ``f(all) - f(none)``. A coalition
        counts as often as those of its size of which it is the sample. With all coalitions this is
        exact; with coalitions in pairs pair effects cancel, so that games of order two are exact.
    """
    players = masks.shape[1]
    moved = float(values[1] - values[0])
    if players == 1:
        return np.array([moved])
    sizes = masks[2:].sum(1)
    drawn = np.bincount(sizes, minlength=players + 1)[sizes]
    importance = np.sqrt((players - 1) / (sizes * (players - sizes) * drawn))
    equal = moved / players
    centre = np.eye(players) - 1 / players  # holds the sum where it is
    features = masks[2:] @ centre * importance[:, None]
    rest = (values[2:] - values[0] - equal * sizes) * importance
    found: FloatArray = centre @ np.linalg.lstsq(features, rest, rcond=None)[0] + equal
    return found
