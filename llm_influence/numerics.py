"""Numerics without torch: coalitions, exact Shapley values, rank correlation, a hash."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import gammaln
from scipy.stats import spearmanr

from llm_influence.types import BoolArray, FloatArray, IntArray

FEWEST_RANKS = 3
"""A rank correlation of fewer points is not defined."""
ROUNDING = 1e-6
"""Numbers whose range is below this part of their size are taken as equal."""
BLOCK = 500
"""Resamples drawn at a time by the bootstrap; affects memory alone."""
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


def bootstrap_interval(
    values: FloatArray,
    groups: IntArray,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``, with whole groups resampled.

    Rows of one user are alike, so users are drawn with replacement, each with all its rows. For
    two systems with the same rows pass the differences by row: the interval is then paired.

    Args:
        values: (N,) one value a row.
        groups: (N,) the row's user, an integer.
        level: Share of the resampled means inside the interval.
        draws: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The lower and the upper end.
    """
    return percentiles(resampled_means([values], groups, draws=draws, seed=seed)[0], level)


def resampled_means(
    columns: Sequence[FloatArray], groups: IntArray, *, draws: int = 10_000, seed: int = 0
) -> FloatArray:
    """(C, draws) means of C columns of N values; a resample draws the same groups for all columns.

    Use it for intervals of a ratio of two means; for a single mean see `bootstrap_interval`.
    """
    present = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(present)
    sums = np.stack([np.bincount(present, weights=column) for column in columns])
    if len(counts) == 1:  # scipy refuses a single group, whose resamples are all the same
        return np.repeat(sums / counts, draws, axis=1)
    result = stats.bootstrap(
        (sums, counts[None]),
        lambda total, rows, axis: total.sum(axis=axis) / rows.sum(axis=axis),
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=draws,
        batch=BLOCK,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.bootstrap_distribution


def percentiles(means: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The two ends between which a share ``level`` of the values lies."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mix64(numbers: UnsignedArray) -> UnsignedArray:
    """The finalizer of SplitMix64: each bit of the result depends on all bits of a number."""
    z = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def splitmix64(numbers: UnsignedArray) -> UnsignedArray:
    """SplitMix64 (Steele, Lea and Flood 2014): pseudo-random 64-bit numbers from counters."""
    return mix64(numbers + GOLDEN_GAMMA)


LISTED = 12
"""Up to this many players, coalitions are drawn without replacement from a list of all."""


def certain_coalitions(players: int) -> BoolArray:
    """(2n + 2, n): none, all, each alone, all but each. They weigh most in a Shapley value."""
    alone = np.eye(players, dtype=bool)
    none = np.zeros((1, players), dtype=bool)
    return unique(np.concatenate([none, ~none, alone, ~alone]))


def unique(masks: BoolArray) -> BoolArray:
    """The distinct rows in the order of their first appearance."""
    return masks[np.sort(np.unique(masks, axis=0, return_index=True)[1])]


def shapley_weights(masks: BoolArray) -> FloatArray:
    """(M, n): weight of the value of a coalition in the Shapley value of a player.

    Positive for members, negative for the others: ``phi = weights.T @ values`` over all 2^n.
    """
    weights = marginal_weights(masks.shape[1])
    sizes = masks.sum(1)
    return np.where(masks, weights[np.maximum(sizes - 1, 0)][:, None], -weights[sizes][:, None])


def random_coalitions(draw: np.random.Generator, players: int, number: int) -> BoolArray:
    """(M, n) distinct coalitions, every player in with probability one half.

    All of them, in random order, where there are no more than ``number``.
    """
    if 1 << players <= number:
        every: BoolArray = draw.permutation(every_coalition(players))
        return every
    masks = np.empty((0, players), dtype=bool)
    while len(masks) < number:
        more = draw.integers(0, 2, (number, players)).astype(bool)
        masks = unique(np.concatenate([masks, more]))[:number]
    return masks


def proper_coalitions(draw: np.random.Generator, players: int, number: int) -> BoolArray:
    """(M, n) coalitions, every player in with probability one half, to test scores on.

    Of up to `LISTED` players they are distinct and neither none nor all, all of those where there
    are no more than ``number``.
    """
    if players > LISTED:
        return draw.random((number, players)) < 0.5
    proper = 2**players - 2
    codes = 1 + draw.choice(proper, size=min(number, proper), replace=False) if proper > 0 else []
    return (np.asarray(codes, dtype=np.int64)[:, None] >> np.arange(players)) % 2 == 1


def by_leverage(draw: np.random.Generator, players: int, number: int) -> BoolArray:
    """(M, n) distinct coalitions, M = ``number`` if there are as many, in pairs with complements.

    First the certain ones, then of every size as many as of any other while there are any: the
    leverage scores of the Shapley regression are equal in total for all sizes (Musco and Witter
    2024, arXiv:2410.01917), here without replacement and without chance in the counts.
    """
    chosen = [mask.tobytes() for mask in certain_coalitions(players)][:number]
    known, sizes = set(chosen), list(range(2, players // 2 + 1))
    left = {size: _pairs_of_size(players, size) for size in sizes}
    while len(chosen) < number and any(left.values()):
        for size in draw.permutation([size for size in sizes if left[size]]):
            mask = _new_coalition(draw, players, int(size), known)
            pair = (mask.tobytes(), (~mask).tobytes())
            chosen += pair
            known.update(pair)
            left[int(size)] -= 1
    return np.frombuffer(b"".join(chosen), dtype=bool).reshape(-1, players)[:number]


def _pairs_of_size(players: int, size: int) -> int:
    """Number of pairs of a coalition of that size and its complement."""
    return comb(players, size) // (2 if 2 * size == players else 1)


def _new_coalition(
    draw: np.random.Generator, players: int, size: int, known: set[bytes]
) -> BoolArray:
    """A random coalition of that size that is not among the ``known`` ones."""
    while True:
        mask = np.zeros(players, dtype=bool)
        mask[draw.choice(players, size, replace=False)] = True
        if mask.tobytes() not in known:
            return mask


def last_members(masks: BoolArray) -> IntArray:
    """(M,) place of the last member, -1 without members."""
    players = masks.shape[1]
    return np.where(masks.any(1), players - 1 - masks[:, ::-1].argmax(1), -1)
