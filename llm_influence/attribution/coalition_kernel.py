"""A covariance of coalitions whose Shapley values are known in closed form.

Two coalitions S and T of n players in time order are alike when few players differ, when they are
of similar size (one event among two weighs more than one among forty), and when the same player
stands last (a sequence model reads its answer off the end):

    k(S, T) = theta^|S xor T| * exp(-(log(1+|S|) - log(1+|T|))^2 / (2 width^2))
              * (1 + last [last(S) = last(T)]) / (1 + last)

As a function of S this is a game, and its Shapley values need no sum over 2^n coalitions: it asks
only how many members S shares with T, how many it has, and who is last, so that coalitions can be
counted. The counts are coefficients of ``(theta + z)^u (1 + theta z)^v``: z marks a member, u
players are in T and v are not, and theta is paid for each that differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import comb

from llm_influence.attribution.coalitions import last_members, marginal_weights
from llm_influence.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class CoalitionKernel:
    """The covariance of this module.

    Attributes:
        theta: What is left of the covariance when one player differs, in (0, 1).
        width: How far apart sizes may be, in log units.
        last: How much more coalitions have in common that end alike.
    """

    theta: float
    width: float
    last: float

    def __call__(self, a: BoolArray, b: BoolArray) -> FloatArray:
        """(A, B) covariances of coalitions (A, n) and (B, n)."""
        players = a.shape[1]
        differing = a.sum(1)[:, None] + b.sum(1) - 2 * (a.astype(float) @ b.T.astype(float))
        near = self.theta ** np.arange(players + 1)
        alike = last_members(a)[:, None] == last_members(b)
        sizes = self.of_sizes(players)[a.sum(1)[:, None], b.sum(1)]
        together: FloatArray = near[np.rint(differing).astype(int)] * sizes
        return together * (1 + self.last * alike) / (1 + self.last)

    def of_sizes(self, players: int) -> FloatArray:
        """(n + 1, n + 1) the factor of two sizes."""
        log = np.log1p(np.arange(players + 1))
        return np.exp(-((log[:, None] - log) ** 2) / (2 * self.width**2))

    def shapley(self, masks: BoolArray) -> FloatArray:
        """(M, n) Shapley values of the games ``S -> k(S, masks[m])``."""
        table = _tables(self, masks.shape[1])
        sizes, last = masks.sum(1), last_members(masks)
        place, end = np.arange(masks.shape[1]), last[:, None]
        first = np.where(masks, table.member[sizes][:, None], table.other[sizes][:, None])
        at = (sizes, last)
        before = np.where(masks, table.end_member[at][:, None], table.end_other[at][:, None])
        after = np.where(place == end, table.end_self[at][:, None], table.end_later[at][:, None])
        second = np.where(place < end, before, after)
        return (first + self.last * second) / (1 + self.last)

    def shapley_variance(self, players: int) -> FloatArray:
        """(n,) variance of the Shapley values of a game drawn with this covariance."""
        return _tables(self, players).variance


@dataclass(frozen=True, slots=True)
class _Tables:
    """Shapley values of ``S -> k(S, T)`` by what matters of T.

    ``member`` and ``other`` (n + 1,) are for a player in T or not, by |T|, without the last factor.
    The part with the last factor is by |T| and last(T), both (n + 1, n + 1), the last axis ending
    with "no last member": for a player in T or not before the last, the last itself, a later one.
    """

    member: FloatArray
    other: FloatArray
    end_member: FloatArray
    end_other: FloatArray
    end_self: FloatArray
    end_later: FloatArray
    variance: FloatArray


@lru_cache(maxsize=512)
def _tables(kernel: CoalitionKernel, players: int) -> _Tables:
    n, theta = players, kernel.theta
    count = _coefficients(theta, n)
    weight = np.append(marginal_weights(n), [0.0, 0.0])
    near = np.zeros((n + 1, n + 4))  # (|T|, |S|), padded: no coalition has more than n members
    near[:, : n + 1] = kernel.of_sizes(n)
    s = np.arange(n + 1)

    def total(u: IntArray, v: IntArray, gain: FloatArray, shift: int) -> FloatArray:
        """Sum over S of u + v free players; nothing where there are not as many."""
        there = (u >= 0) & (v >= 0)
        chosen = count[np.where(there, u, 0), np.where(there, v, 0)]
        return np.where(there, (chosen * weight[s + shift] * gain).sum(-1), 0.0)

    t = np.arange(n + 1)
    member = total(t - 1, n - t, near[:, s + 1] - theta * near[:, s], 0)
    other = total(t, n - t - 1, theta * near[:, s + 1] - near[:, s], 0)

    size, end = t[:, None], np.append(np.arange(n), -1)[None, :]
    u, v = np.broadcast_arrays(size - 1, end - (size - 1))
    one, two = near[:, None, s + 1], near[:, None, s + 2]
    end_self = total(u, v, one, 0)
    end_later = -total(u, v, one, 1)
    end_later[0, n] = -weight[0]  # T is empty, and so is every S that ends like it
    end_member = total(u - 1, v, two - theta * one, 1)
    end_other = total(u, v - 1, theta * two - one, 1)
    tables = (member, other, end_member, end_other, end_self, end_later)
    return _Tables(*tables, _variance(kernel, n, *tables))


def _coefficients(theta: float, n: int) -> FloatArray:
    """(u, v, s), each up to n: coefficient of z^s in ``(theta + z)^u (1 + theta z)^v``."""
    found = np.zeros((n + 1, n + 1, n + 1))
    found[0, 0, 0] = 1.0
    for u in range(n):
        found[u + 1, 0] = theta * found[u, 0]
        found[u + 1, 0, 1:] += found[u, 0, :-1]
    for v in range(n):
        found[:, v + 1] = found[:, v]
        found[:, v + 1, 1:] += theta * found[:, v, :-1]
    return found


def _variance(
    kernel: CoalitionKernel,
    n: int,
    member: FloatArray,
    other: FloatArray,
    end_member: FloatArray,
    end_other: FloatArray,
    end_self: FloatArray,
    end_later: FloatArray,
) -> FloatArray:
    """The Shapley value, in T, of the Shapley values in S: coalitions T counted by size and end."""
    t = np.arange(n + 1)
    inside = np.append(0.0, marginal_weights(n)[:n])  # by |T|, for a member of T
    outside = marginal_weights(n)
    plain = comb(n - 1, t - 1) * inside * member - comb(n - 1, t) * outside * other
    end, size = np.arange(n)[None, :], t[:, None]
    own = (comb(end, size - 1) * inside[:, None] * end_self[:, :n]).sum(0)
    later = -(comb(end, size - 1) * outside[:, None] * end_later[:, :n]).sum(0)
    earlier = (
        comb(end - 1, size - 2) * inside[:, None] * end_member[:, :n]
        - comb(end - 1, size - 1) * outside[:, None] * end_other[:, :n]
    ).sum(0)
    before = np.append(0.0, later.cumsum()[:-1])  # sums over ends before each player, and after
    after = np.append(earlier[::-1].cumsum()[::-1][1:], 0.0)
    empty = outside[0] * -end_later[0, n]
    return (plain.sum() + kernel.last * (own + before + after + empty)) / (1 + kernel.last)
