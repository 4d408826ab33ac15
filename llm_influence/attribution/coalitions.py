"""Coalitions: subsets of n players as rows of a bool array, sampled and weighted."""

from __future__ import annotations

from math import comb

import numpy as np

from llm_influence.numerics import every_coalition, marginal_weights
from llm_influence.types import BoolArray, FloatArray, IntArray

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
    """(M, n) distinct coalitions, every player in with probability one half; all of them, in random
    order, where there are no more than ``number``.
    """  # noqa: D205
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
