"""Effects of factors by least squares over events, standard errors clustered by user.

Events of one user are alike, so they are no independent witnesses: the sandwich estimator of Liang
and Zeger (1986) takes users as units. Levels are dummies; all that is needed of the data are
counts and sums, gathered batch by batch, so that no design matrix ever exists.

    b = (X'X)^-1 X'y,   V = c (X'X)^-1 [sum over users of X_u' e_u e_u' X_u] (X'X)^-1,
    c = U / (U - 1) * (n - 1) / (n - p)

Two evaluations: counts and sums, then residuals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import linalg, stats

from llm_influence.analysis.event_cells import Batch
from llm_influence.analysis.statistics import LEVEL
from llm_influence.types import BoolArray, FloatArray, IntArray

SINGULAR = 1e-9
"""Share of a column's own variation below which the columns before it have said it all."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Counts and sums of n events.

    Attributes:
        sizes: (F,) how many levels each factor has; P is their sum.
        counts: (P, P) events that have both levels; the diagonal counts each level.
        sums: (P,) responses added up by level.
        events: n.
        total: Sum of all responses.
        squares: Sum of their squares.
    """

    sizes: tuple[int, ...]
    counts: FloatArray
    sums: FloatArray
    events: int
    total: float
    squares: float

    @property
    def blocks(self) -> list[slice]:
        """The places of each factor's levels among the P."""
        return blocks_of(self.sizes)

    @property
    def shares(self) -> FloatArray:
        """(P,) share of the events that have each level."""
        return np.diag(self.counts) / self.events

    @property
    def variance(self) -> float:
        """Of the response over events."""
        return self.squares / self.events - (self.total / self.events) ** 2


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fitted regression.

    Attributes:
        moments: Of the data.
        kept: (p,) places of the levels that have a coefficient: each factor's most frequent level
            is the base, and what the levels before it say already is left out.
        inverse: (1 + p, 1 + p) of X'X, the intercept first.
        coefficients: (1 + p,).
        covariance: (1 + p, 1 + p) of the coefficients, over users.
        users: U.
    """

    moments: Moments
    kept: IntArray
    inverse: FloatArray
    coefficients: FloatArray
    covariance: FloatArray
    users: int

    @property
    def r_squared(self) -> float:
        """Share of the response's variance that the factors explain."""
        m, moved = self.moments, design(self.moments, self.kept)[1]
        explained = self.coefficients @ moved - m.total**2 / m.events
        return float(explained / (m.variance * m.events)) if m.variance else 0.0

    def effects(self) -> tuple[FloatArray, FloatArray]:
        """(P,) effects against the average event, and their standard errors.

        nan where the level does not occur or is told by the levels before it.
        """
        contrast = self._contrast()
        values = contrast @ self.coefficients
        errors = np.sqrt(np.einsum("pi,ij,pj->p", contrast, self.covariance, contrast))
        missing = ~self.estimable
        values[missing], errors[missing] = np.nan, np.nan
        return values, errors

    @property
    def estimable(self) -> BoolArray:
        """(P,) whether a level has an effect of its own."""
        found = np.zeros(len(self.moments.sums), dtype=bool)
        found[self.kept] = True
        found[list(bases(self.moments))] = True
        return found

    @property
    def critical(self) -> float:
        """Half the width of a 95% interval, in standard errors: Student's t over users."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.users - 1))

    def wald(self, factor: int) -> float:
        """The p-value of all of a factor's effects being zero; nan where it has none of its own."""
        places = 1 + np.flatnonzero(self._of(factor))
        covariance = self.covariance[np.ix_(places, places)]
        return zero_test(self.coefficients[places], covariance, self.users)

    def spread(self, factor: int) -> tuple[float, float, float]:
        """Standard deviation over events of a factor's effect, with the ends of its interval.

        The square is freed of what chance adds to it (the trace of its covariance), the interval
        is that of a quadratic form of normal coefficients.
        """
        rows = self._contrast()[self.moments.blocks[factor]]
        shares = self.moments.shares[self.moments.blocks[factor]]
        return spread_of(rows @ self.coefficients, rows @ self.covariance @ rows.T, np.diag(shares))

    def _of(self, factor: int) -> BoolArray:
        block = self.moments.blocks[factor]
        return (self.kept >= block.start) & (self.kept < block.stop)

    def _contrast(self) -> FloatArray:
        """(P, 1 + p) from coefficients to effects against the average event."""
        chosen = np.zeros((len(self.moments.sums), 1 + len(self.kept)))
        chosen[self.kept, 1 + np.arange(len(self.kept))] = 1
        for block in self.moments.blocks:
            chosen[block] -= self.moments.shares[block] @ chosen[block]
        return chosen


def gather(batches: Iterable[Batch], sizes: Sequence[int]) -> Moments:
    """First pass: counts and sums."""
    blocks, width = blocks_of(sizes), sum(sizes)
    counts, sums, events, total, squares = np.zeros((width, width)), np.zeros(width), 0, 0.0, 0.0
    for batch in batches:
        columns = batch.columns()
        for f, block in enumerate(blocks):
            sums[block] += np.bincount(columns[f], batch.response, minlength=sizes[f])
            own = np.bincount(columns[f], minlength=sizes[f])
            counts[block, block] += np.diag(own)
        for f, g in combinations(range(len(sizes)), 2):
            both = np.bincount(columns[f] * sizes[g] + columns[g], minlength=sizes[f] * sizes[g])
            counts[blocks[f], blocks[g]] += both.reshape(sizes[f], sizes[g])
        events += len(batch.response)
        total += float(batch.response.sum())
        squares += float(batch.response @ batch.response)
    for f, g in combinations(range(len(sizes)), 2):
        counts[blocks[g], blocks[f]] = counts[blocks[f], blocks[g]].T
    return Moments(tuple(sizes), counts, sums, events, total, squares)


def fit(moments: Moments, batches: Iterable[Batch], users: int) -> Fit:
    """Solve, then a second pass over the same batches for the standard errors.

    Args:
        moments: Of the batches.
        batches: Events, those of a user together.
        users: How many users there are, at least 2.
    """
    kept = _independent(moments)
    gram, moved = design(moments, kept)
    inverse = np.linalg.inv(gram)
    coefficients = inverse @ moved
    meat = np.zeros_like(gram)
    sums = UserSums(moments.sizes)
    for batch, residuals in with_residuals(moments.sizes, kept, coefficients, batches):
        meat += _squares(sums.add(batch.user, batch.columns(), residuals), moments.sizes, kept)
    meat += _squares(sums.last(), moments.sizes, kept)
    n, p = moments.events, len(coefficients)
    correction = small_sample(users) * (n - 1) / max(n - p, 1)
    covariance = correction * inverse @ meat @ inverse
    return Fit(moments, kept, inverse, coefficients, covariance, users)


def with_residuals(
    sizes: Sequence[int], kept: IntArray, coefficients: FloatArray, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, FloatArray]]:
    """Each batch with what the regression leaves unexplained, (n,)."""
    levels = np.zeros(sum(sizes))
    levels[kept] = coefficients[1:]
    blocks = blocks_of(sizes)
    for batch in batches:
        fitted = np.full(len(batch.response), coefficients[0])
        for f, block in enumerate(blocks):
            fitted += levels[block][batch.codes[:, f]]
        yield batch, batch.response - fitted


class UserSums:
    """Sums of values by user and level, where a user may go on in the next batch."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._user = -1
        self._open = np.zeros(sum(sizes))

    def add(self, user: IntArray, columns: Sequence[IntArray], values: FloatArray) -> FloatArray:
        """(users, sum of sizes) of the users that are complete with this batch.

        Args:
            user: (n,) never decreasing.
            columns: One (n,) array of codes for each size.
            values: (n,) what is added up.
        """
        place = user - user[0]
        rows = int(place[-1]) + 1
        sums = np.concatenate(
            [
                np.bincount(place * size + codes, values, minlength=rows * size).reshape(rows, size)
                for size, codes in zip(self._sizes, columns, strict=True)
            ],
            axis=1,
        )
        if user[0] == self._user:
            sums[0] += self._open
        elif self._user >= 0:
            sums = np.concatenate([self._open[None], sums])
        self._user, self._open = int(user[-1]), sums[-1].copy()
        return sums[:-1]

    def last(self) -> FloatArray:
        """(1, sum of sizes) of the user who stood last."""
        return self._open[None]


def design(moments: Moments, kept: IntArray) -> tuple[FloatArray, FloatArray]:
    """X'X and X'y of the intercept and the kept levels."""
    own = np.diag(moments.counts)[kept]
    gram = np.empty((1 + len(kept), 1 + len(kept)))
    gram[0, 0], gram[0, 1:], gram[1:, 0] = moments.events, own, own
    gram[1:, 1:] = moments.counts[np.ix_(kept, kept)]
    return gram, np.concatenate([[moments.total], moments.sums[kept]])


def columns_of(levels: FloatArray, sizes: Sequence[int], kept: IntArray) -> FloatArray:
    """(N, P) sums by level to (N, 1 + p) sums by column of the design."""
    return np.concatenate([levels[:, : sizes[0]].sum(axis=1, keepdims=True), levels[:, kept]], 1)


def spread_of(
    values: FloatArray, covariance: FloatArray, weights: FloatArray
) -> tuple[float, float, float]:
    """Root of v'Wv without what chance adds, and the ends of its 95% interval.

    Args:
        values: (k,) estimates v.
        covariance: (k, k) of them.
        weights: (k, k) W.
    """
    moved = weights @ covariance
    square = values @ weights @ values - np.trace(moved)
    variance = 4 * values @ weights @ covariance @ weights @ values + 2 * np.trace(moved @ moved)
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(max(variance, 0.0))
    low, middle, high = np.sqrt(np.maximum([square - half, square, square + half], 0.0))
    return float(middle), float(low), float(high)


def zero_test(values: FloatArray, covariance: FloatArray, users: int) -> float:
    """The p-value of all values being zero, by Hotelling's F with users as observations.

    Chi-square would promise too much where users are few. nan where there is nothing to test, or
    not more users than values.
    """
    rank = int(np.linalg.matrix_rank(covariance, hermitian=True)) if len(values) else 0
    if not rank or rank >= users:
        return float("nan")
    squares = values @ np.linalg.pinv(covariance, hermitian=True) @ values
    scaled = squares * (users - rank) / (rank * (users - 1))
    return float(stats.f.sf(scaled, rank, users - rank))


def small_sample(users: int) -> float:
    """What the number of clusters adds to their variance."""
    return users / (users - 1)


def holm(p_values: Sequence[float]) -> FloatArray:
    """Holm's (1979) p-values of a family: the chance of any false alarm stays below the level.

    nan stays nan and counts for nothing.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def blocks_of(sizes: Sequence[int]) -> list[slice]:
    """The places of each factor's levels, one factor after another."""
    ends = np.cumsum(sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


def bases(moments: Moments) -> list[int]:
    """The place of each factor's most frequent level."""
    counts = np.diag(moments.counts)
    return [block.start + int(counts[block].argmax()) for block in moments.blocks]


def _independent(moments: Moments) -> IntArray:
    """Levels that say something of their own, by Gram and Schmidt in their order."""
    counts, base = np.diag(moments.counts), set(bases(moments))
    candidates = [place for place, n in enumerate(counts) if n and place not in base]
    gram, _ = design(moments, np.array(candidates, dtype=np.int64))
    kept, factor = [0], np.array([[np.sqrt(gram[0, 0])]])
    for column in range(1, len(gram)):
        along = linalg.solve_triangular(factor, gram[kept, column], lower=True)
        rest = gram[column, column] - along @ along
        if rest > SINGULAR * gram[column, column]:
            factor = np.block(
                [[factor, np.zeros((len(kept), 1))], [along[None], np.array([[np.sqrt(rest)]])]]
            )
            kept.append(column)
    return np.array([candidates[column - 1] for column in kept[1:]], dtype=np.int64)


def _squares(sums: FloatArray, sizes: Sequence[int], kept: IntArray) -> FloatArray:
    scores = columns_of(sums, sizes, kept)
    return scores.T @ scores
