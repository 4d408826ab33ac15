"""Small numerical functions shared by several rooms; they need neither torch nor a model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import spearmanr

from llm_influence.types import BoolArray, FloatArray

FEWEST_RANKS = 3
"""A rank correlation of fewer points is not defined."""
ROUNDING = 1e-6
"""Numbers whose range is below this part of their size are taken as equal."""
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Increment of SplitMix64: 2^64 divided by the golden ratio."""

UnsignedArray = npt.NDArray[np.uint64]


def every_coalition(players: int) -> BoolArray:
    """All subsets of n players.

    Args:
        players: Number n of players.

    Returns:
        (2^n, n) bool; row number c holds player i where bit i of c is set.
    """
    return (np.arange(1 << players)[:, None] >> np.arange(players) & 1).astype(bool)


def marginal_weights(players: int) -> FloatArray:
    """Weights of marginal contributions in a Shapley value.

    Args:
        players: Number n of players.

    Returns:
        (n + 1,) ``s! (n-1-s)! / n!`` at s: the probability that a random order puts s given players
        first and one given player next; 0 at s = n.
    """
    s = np.arange(players)
    weights = np.exp(gammaln(s + 1) + gammaln(players - s) - gammaln(players + 1))
    return np.append(weights, 0.0)


def exact_shapley(values: FloatArray) -> FloatArray:
    """Shapley values from the values of all coalitions.

    ``phi_i = sum over S without i of |S|! (n-|S|-1)! / n! (f(S with i) - f(S))``, Shapley 1953.

    Args:
        values: (..., 2^n) values in the order of `every_coalition`; leading axes are other games.

    Returns:
        (..., n) Shapley values.
    """
    players = values.shape[-1].bit_length() - 1
    masks = every_coalition(players)
    weights = marginal_weights(players)[masks.sum(1)]
    scores = np.empty((*values.shape[:-1], players))
    for player in range(players):
        without = np.flatnonzero(~masks[:, player])
        gains = values[..., without | 1 << player] - values[..., without]
        scores[..., player] = gains @ weights[without]
    return scores


def spearman(
    values: FloatArray, scores: FloatArray, *, if_scores_constant: float = np.nan
) -> float:
    """Spearman's rank correlation of two (n,) arrays.

    Numbers that differ by rounding alone (`is_constant`) count as constant.

    Args:
        values: (n,) measured values.
        scores: (n,) scores that should order them.
        if_scores_constant: Result where the scores are constant and the values are not.

    Returns:
        The correlation; nan for fewer than 3 points and for constant ``values``.
    """
    if len(values) < FEWEST_RANKS or is_constant(values):
        return float("nan")
    if is_constant(scores):
        return if_scores_constant
    return round(float(spearmanr(values, scores).statistic), 12)  # a perfect one comes out near 1


def is_constant(numbers: FloatArray) -> bool:
    """Whether (n,) numbers differ by rounding alone."""
    return bool(np.ptp(numbers) <= ROUNDING * np.abs(numbers).max())


def mix64(numbers: UnsignedArray) -> UnsignedArray:
    """The finalizer of SplitMix64: each bit of the result depends on all bits of a number."""
    z = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def splitmix64(numbers: UnsignedArray) -> UnsignedArray:
    """SplitMix64 (Steele, Lea and Flood 2014): pseudo-random 64-bit numbers from counters."""
    return mix64(numbers + GOLDEN_GAMMA)
