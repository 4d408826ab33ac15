"""Shapley values from some coalitions by a Gaussian process, integrated in closed form.

The game is modelled as ``f(S) = c + sum of b_i over S + g(S) + e(S)``: an additive trend with a
flat prior, a smooth part g with the covariance k, and a rough part e, independent between
coalitions. Shapley values are linear in f, so the posterior mean and variance of f give those of
the Shapley values, without a sum over 2^n coalitions. e is part of the game, not noise: with all
coalitions the answer is exact, and the scores always add up to ``f(all) - f(none)``.

Two coalitions S and T of n players in time order have a high covariance if few players differ, if
their sizes are similar (one event among two matters more than one among forty), and if the same
player is last (a sequence model predicts from the end):

    k(S, T) = theta^|S xor T| * exp(-(log(1+|S|) - log(1+|T|))^2 / (2 width^2))
              * (1 + last [last(S) = last(T)]) / (1 + last)

As a function of S this is a game. It depends only on how many members S shares with T, on the size
of S and on its last member, so coalitions can be counted instead of listed. The counts are
coefficients of ``(theta + z)^u (1 + theta z)^v``: z marks a member, u players are in T and v are
not, and each player that differs gives a factor theta.

theta, width, last and the share of e are unknown. The answer is the mean over a small grid of them,
weighted by the restricted marginal likelihood of the values. The posterior variance does not depend
on the values, so it also chooses the coalitions: always the one that reduces it most.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import comb

from llm_influence.numerics import (
    by_leverage,
    certain_coalitions,
    last_members,
    marginal_weights,
    shapley_weights,
)
from llm_influence.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class CoalitionKernel:
    """The covariance k of this module.

    Attributes:
        theta: Factor of the covariance for each player that differs, in (0, 1).
        width: Scale of the difference of sizes, in log units.
        last: Weight of the agreement of the last members.
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
        """(n + 1, n + 1) factor of the covariance for two sizes."""
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
    """Shapley values of ``S -> k(S, T)`` by size and last member of T.

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
    table = np.zeros((n + 1, n + 1, n + 1))
    table[0, 0, 0] = 1.0
    for u in range(n):
        table[u + 1, 0] = theta * table[u, 0]
        table[u + 1, 0, 1:] += table[u, 0, :-1]
    for v in range(n):
        table[:, v + 1] = table[:, v]
        table[:, v + 1, 1:] += theta * table[:, v, :-1]
    return table


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


REACH = (12.0, 6.0, 2.5, 1.0)
"""Settings of theta: the covariance is ``exp(-reach)`` where all players differ."""
LAST = (0.3, 2.0)
WIDTH = 1.0
ROUGH = (1e-3, 0.05)
"""Variance of the rough part in units of the smooth part's."""
TYPICAL_REACH, TYPICAL_LAST, TYPICAL_ROUGH = 4.0, 0.7, 0.01
"""Typical settings, by which coalitions are chosen before any value is known."""
POOL, POOLED, LARGEST_POOL = 512, 5, 2048
"""Coalitions to choose from: five for each one that is chosen, within these bounds."""
NEGLIGIBLE = 1e-4
"""Settings with less than this share of the weight are left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Shapley values of n players and their standard errors, both (n,)."""

    scores: FloatArray
    standard_errors: FloatArray


def plan(draw: np.random.Generator, players: int, number: int) -> BoolArray:
    """(M, n) coalitions to evaluate, best first; fewer than ``number`` if there are no more.

    The certain ones come first. Each next one comes from a random pool (leverage sampling) and
    reduces the summed variance of the Shapley values most, given those before it. Any first part of
    the plan is itself a plan.
    """
    certain = len(certain_coalitions(players))
    pool = by_leverage(draw, players, max(number, min(LARGEST_POOL, max(POOL, POOLED * number))))
    number = min(number, len(pool))
    typical = CoalitionKernel(np.exp(-TYPICAL_REACH / players), WIDTH, TYPICAL_LAST)
    covariance = typical(pool, pool)
    covariance[np.diag_indices_from(covariance)] += TYPICAL_ROUGH
    left = covariance.diagonal().copy()
    shared = typical.shapley(pool) + TYPICAL_ROUGH * shapley_weights(pool)
    rows, order = np.zeros((number, len(pool))), np.zeros(number, dtype=int)
    for step in range(number):
        gains = np.where(left > TYPICAL_ROUGH / 2, (shared**2).sum(1) / left, 0.0)
        gains[order[:step]] = -1.0
        best = step if step < certain else int(gains.argmax())
        row = (covariance[best] - rows[:step, best] @ rows[:step]) / np.sqrt(left[best])
        shared = shared - np.outer(row, shared[best] / np.sqrt(left[best]))
        left = np.maximum(left - row**2, 1e-12)
        rows[step], order[step] = row, best
    return pool[order]


def kernels(players: int) -> list[CoalitionKernel]:
    """The covariances that are averaged over."""
    return [
        CoalitionKernel(np.exp(-reach / players), WIDTH, last)
        for reach, last in itertools.product(REACH, LAST)
    ]


def estimate(
    masks: BoolArray, values: FloatArray, among: Sequence[CoalitionKernel] | None = None
) -> Estimate:
    """Shapley values from the values of some coalitions.

    Args:
        masks: (M, n) distinct coalitions, the certain ones among them, M >= n + 3.
        values: (M,) their values.
        among: Covariances to average over; default: `kernels`.
    """
    if _additive(masks, values):
        return Estimate(_slopes(masks, values), np.zeros(masks.shape[1]))
    among = kernels(masks.shape[1]) if among is None else among
    fits = [_Fit.of(kernel, masks, values, rough) for kernel in among for rough in ROUGH]
    evidence = np.array([fit.evidence for fit in fits])
    weights = np.exp(evidence - evidence.max())
    weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
    weights /= weights.sum()
    kept = [(weight, *fit.shapley()) for weight, fit in zip(weights, fits, strict=True) if weight]
    mean = np.sum([weight * scores for weight, scores, _ in kept], axis=0)
    spread = [weight * (var + (scores - mean) ** 2) for weight, scores, var in kept]
    return Estimate(mean, np.sqrt(np.sum(spread, axis=0)))


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The process with one setting, conditioned on the values."""

    kernel: CoalitionKernel
    rough: float
    masks: BoolArray
    factor: FloatArray  # (M, M) Cholesky factor, lower
    trend: FloatArray  # (M, n + 1)
    trend_factor: FloatArray  # (n + 1, n + 1)
    slopes: FloatArray  # (n + 1,)
    pull: FloatArray  # (M,) covariance^-1 (values - trend)
    scale: float
    evidence: float

    @classmethod
    def of(
        cls, kernel: CoalitionKernel, masks: BoolArray, values: FloatArray, rough: float
    ) -> _Fit:
        covariance = kernel(masks, masks)
        covariance[np.diag_indices_from(covariance)] += rough
        factor = cholesky(covariance, lower=True)
        trend = np.column_stack([np.ones(len(masks)), masks])
        white = solve_triangular(factor, np.column_stack([trend, values]), lower=True)
        trend_factor = cholesky(white[:, :-1].T @ white[:, :-1], lower=True)
        slopes = cho_solve((trend_factor, True), white[:, :-1].T @ white[:, -1])
        rest = white[:, -1] - white[:, :-1] @ slopes
        freedom = len(values) - trend.shape[1]
        scale = float(rest @ rest) / freedom
        evidence = -0.5 * freedom * np.log(scale)
        evidence -= np.log(np.diag(factor)).sum() + np.log(np.diag(trend_factor)).sum()
        pull = solve_triangular(factor, rest, lower=True, trans=1)
        return cls(
            kernel, rough, masks, factor, trend, trend_factor, slopes, pull, scale, float(evidence)
        )

    def shapley(self) -> tuple[FloatArray, FloatArray]:
        """(n,) means and (n,) variances."""
        players = self.masks.shape[1]
        weights = shapley_weights(self.masks)
        shared = self.kernel.shapley(self.masks) + self.rough * weights  # (M, n)
        mean = self.slopes[1:] + shared.T @ self.pull
        known = solve_triangular(self.factor, shared, lower=True)
        white = solve_triangular(self.factor, self.trend, lower=True)
        open_trend = np.eye(players + 1)[:, 1:] - white.T @ known
        trend = solve_triangular(self.trend_factor, open_trend, lower=True)
        before = self.kernel.shapley_variance(players) + self.rough * _squares(players)
        left = before - (known**2).sum(0) + (trend**2).sum(0)
        return mean, self.scale * np.maximum(left, 0.0)


@lru_cache(maxsize=256)
def _squares(players: int) -> float:
    """The sum over all coalitions of the squared weight that each has for one player."""
    s, weight = np.arange(players), marginal_weights(players)[:players]
    return float((2 * comb(players - 1, s) * weight**2).sum())


def _slopes(masks: BoolArray, values: FloatArray) -> FloatArray:
    """(n,) worth of each player in an additive game."""
    trend = np.column_stack([np.ones(len(masks)), masks])
    slopes: FloatArray = np.linalg.lstsq(trend, values, rcond=None)[0][1:]
    return slopes


def _additive(masks: BoolArray, values: FloatArray) -> bool:
    """Whether the game is additive on these coalitions."""
    trend = np.column_stack([np.ones(len(masks)), masks])
    rest = values - trend @ np.linalg.lstsq(trend, values, rcond=None)[0]
    return bool(np.abs(rest).max() <= 1e-10 * max(1.0, np.abs(values).max()))
