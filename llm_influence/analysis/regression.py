"""Linear regression of influence on factors, with standard errors clustered by user.

Events of one user are similar, so the sandwich estimator of Liang and Zeger (1986) takes users as
units. Levels are dummy variables. The fit needs only counts and sums, gathered batch by batch, so
there is never a design matrix:

    b = (X'X)^-1 X'y,   V = c (X'X)^-1 [sum over users of X_u' e_u e_u' X_u] (X'X)^-1,
    c = U / (U - 1) * (n - 1) / (n - p)

There are two passes: counts and sums, then residuals. One more pass tests all pairs of factors:
the dummies of a pair's cells are added to the regression. By the theorem of Frisch, Waugh and
Lovell their coefficients follow from the residuals,

    g = (Z~'Z~)^-1 Z'e,   Z~ = Z - X (X'X)^-1 X'Z.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from llm_influence.analysis.levels import Batch
from llm_influence.analysis.statistics import NORMAL
from llm_influence.types import BoolArray, FloatArray, IntArray

SINGULAR = 1e-9
"""A column whose variation beyond the earlier columns is a smaller part of it adds nothing."""
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Counts and sums of n events by the levels of F factors."""

    sizes: tuple[int, ...]  # (F,) number of levels of each factor; P is their sum
    counts: FloatArray  # (P, P) events that have both levels; the diagonal counts each level
    sums: FloatArray  # (P,) summed responses by level
    events: int  # n
    total: float  # Sum of all responses
    squares: float  # Sum of all squared responses

    @property
    def blocks(self) -> list[slice]:
        """The places of each factor's levels among the P."""
        return _blocks(self.sizes)

    @property
    def shares(self) -> FloatArray:
        """(P,) share of the events that have each level."""
        return np.diag(self.counts) / self.events

    @property
    def variance(self) -> float:
        """Variance of the response over events."""
        return self.squares / self.events - (self.total / self.events) ** 2

    @property
    def bases(self) -> list[int]:
        """The place of each factor's most frequent level, which has no coefficient."""
        counts = np.diag(self.counts)
        return [block.start + int(counts[block].argmax()) for block in self.blocks]

    def design(self, kept: IntArray) -> tuple[FloatArray, FloatArray]:
        """X'X and X'y of the intercept and the ``kept`` levels."""
        own = np.diag(self.counts)[kept]
        gram = np.empty((1 + len(kept), 1 + len(kept)))
        gram[0, 0], gram[0, 1:], gram[1:, 0] = self.events, own, own
        gram[1:, 1:] = self.counts[np.ix_(kept, kept)]
        return gram, np.concatenate([[self.total], self.sums[kept]])

    def independent(self) -> IntArray:
        """Levels that the earlier levels do not determine, by elimination in their order."""
        counts, bases = np.diag(self.counts), set(self.bases)
        places = [place for place, n in enumerate(counts) if n and place not in bases]
        candidates = np.array(places, dtype=np.int64)
        rest, _ = self.design(candidates)
        own, kept = np.diag(rest).copy(), []
        for column in range(len(rest)):
            if rest[column, column] > SINGULAR * own[column]:
                kept.append(column)
                rest -= np.outer(rest[:, column], rest[column]) / rest[column, column]
        return candidates[np.array(kept[1:], dtype=np.int64) - 1]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fitted regression."""

    moments: Moments  # Counts and sums of the data
    # (p,) places of the levels that have a coefficient: neither a factor's most frequent
    # level, nor one that the levels before it determine
    kept: IntArray
    inverse: FloatArray  # (1 + p, 1 + p) inverse of X'X, the intercept first
    coefficients: FloatArray  # (1 + p,)
    covariance: FloatArray  # (1 + p, 1 + p) of the coefficients, clustered by user
    users: int  # Number of users U

    @property
    def r_squared(self) -> float:
        """Share of the response's variance that the factors explain."""
        m, (_, moved) = self.moments, self.moments.design(self.kept)
        explained = self.coefficients @ moved - m.total**2 / m.events
        return float(explained / (m.variance * m.events)) if m.variance else 0.0

    @property
    def estimable(self) -> BoolArray:
        """(P,) whether a level has an effect of its own."""
        own = np.zeros(len(self.moments.sums), dtype=bool)
        own[self.kept] = True
        own[self.moments.bases] = True
        return own

    def effects(self) -> tuple[FloatArray, FloatArray]:
        """(P,) effects against the average event, and their standard errors.

        Both are nan where the level does not occur or other levels determine it.
        """
        contrast = self._contrast()
        values = contrast @ self.coefficients
        errors = np.sqrt(np.einsum("pi,ij,pj->p", contrast, self.covariance, contrast))
        values[~self.estimable], errors[~self.estimable] = np.nan, np.nan
        return values, errors

    def wald(self, factor: int) -> float:
        """The p-value of no effect of a factor; nan where it has no coefficient."""
        block = self.moments.blocks[factor]
        own = (self.kept >= block.start) & (self.kept < block.stop)
        places = 1 + np.flatnonzero(own)
        covariance = self.covariance[np.ix_(places, places)]
        return zero_test(self.coefficients[places], covariance, self.users)

    def spread(self, factor: int) -> tuple[float, float, float]:
        """Standard deviation of a factor's effect over events, with interval; see `spread_of`."""
        rows = self._contrast()[self.moments.blocks[factor]]
        shares = self.moments.shares[self.moments.blocks[factor]]
        return spread_of(rows @ self.coefficients, rows @ self.covariance @ rows.T, np.diag(shares))

    def columns(self, levels: FloatArray) -> FloatArray:
        """(N, P) sums by level as (N, 1 + p) sums by column of the design."""
        first = levels[:, : self.moments.sizes[0]].sum(axis=1, keepdims=True)
        return np.concatenate([first, levels[:, self.kept]], axis=1)

    def residuals(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, FloatArray]]:
        """Each batch with its (n,) residuals."""
        levels = np.zeros(len(self.moments.sums))
        levels[self.kept] = self.coefficients[1:]
        for batch in batches:
            fitted = np.full(len(batch.response), self.coefficients[0])
            for f, block in enumerate(self.moments.blocks):
                fitted += levels[block][batch.codes[:, f]]
            yield batch, batch.response - fitted

    def _contrast(self) -> FloatArray:
        """(P, 1 + p) matrix from coefficients to effects against the average event."""
        chosen = np.zeros((len(self.moments.sums), 1 + len(self.kept)))
        chosen[self.kept, 1 + np.arange(len(self.kept))] = 1
        for block in self.moments.blocks:
            chosen[block] -= self.moments.shares[block] @ chosen[block]
        return chosen


def gather(batches: Iterable[Batch], sizes: Sequence[int]) -> Moments:
    """First pass: counts and sums of events by the levels of factors with these sizes."""
    blocks, width = _blocks(sizes), sum(sizes)
    counts, sums, events, total, squares = np.zeros((width, width)), np.zeros(width), 0, 0.0, 0.0
    for batch in batches:
        columns = batch.columns()
        for f, block in enumerate(blocks):
            sums[block] += np.bincount(columns[f], batch.response, minlength=sizes[f])
            counts[block, block] += np.diag(np.bincount(columns[f], minlength=sizes[f]))
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
    """Solve, then take a second pass over the same events for the standard errors.

    All events of a user are in one batch; there are at least 2 users.
    """
    kept = moments.independent()
    gram, moved = moments.design(kept)
    inverse = np.linalg.inv(gram)
    solved = Fit(moments, kept, inverse, inverse @ moved, np.zeros_like(gram), users)
    meat = np.zeros_like(gram)
    for batch, residuals in solved.residuals(batches):
        sums = sums_by_user(batch.user, batch.columns(), moments.sizes, residuals)
        scores = solved.columns(sums)
        meat += scores.T @ scores
    n, p = moments.events, len(gram)
    factor = users / (users - 1) * (n - 1) / max(n - p, 1)
    covariance = factor * inverse @ meat @ inverse
    return Fit(moments, kept, inverse, solved.coefficients, covariance, users)


def sums_by_user(
    user: IntArray, columns: Sequence[IntArray], sizes: Sequence[int], values: FloatArray
) -> FloatArray:
    """(users, sum of sizes) sums of (n,) values by user and level of each column of codes."""
    place = user - user[0]
    rows = int(place[-1]) + 1
    sums = [
        np.bincount(place * size + codes, values, minlength=rows * size).reshape(rows, size)
        for size, codes in zip(sizes, columns, strict=True)
    ]
    return np.concatenate(sums, axis=1)


def spread_of(
    values: FloatArray, covariance: FloatArray, weights: FloatArray
) -> tuple[float, float, float]:
    """Root of v'Wv without the part that sampling error adds, and the ends of its 95% interval.

    The trace of the covariance is subtracted from the square. The interval is that of a quadratic
    form of normal variables. ``values`` are (k,) estimates v, ``weights`` the (k, k) matrix W.
    """
    moved = weights @ covariance
    square = values @ weights @ values - np.trace(moved)
    variance = 4 * values @ weights @ covariance @ weights @ values + 2 * np.trace(moved @ moved)
    half = NORMAL * np.sqrt(max(variance, 0.0))
    low, middle, high = np.sqrt(np.maximum([square - half, square, square + half], 0.0))
    return float(middle), float(low), float(high)


def zero_test(values: FloatArray, covariance: FloatArray, users: int) -> float:
    """The p-value of all values being zero, by Hotelling's F test with users as observations.

    A chi-square test would be too optimistic for few users. nan without values, or with no more
    users than values.
    """
    rank = int(np.linalg.matrix_rank(covariance, hermitian=True)) if len(values) else 0
    if not rank or rank >= users:
        return float("nan")
    squares = values @ np.linalg.pinv(covariance, hermitian=True) @ values
    scaled = squares * (users - rank) / (rank * (users - 1))
    return float(stats.f.sf(scaled, rank, users - rank))


def _blocks(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


# --- pairs of factors ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Interaction:
    """What a pair of factors adds to the sum of their effects."""

    pair: Pair  # Numbers of the two factors
    # Standard deviation of the added effect over events, and its interval; see `spread_of`
    spread: tuple[float, float, float]
    # Score test of no added effect; nan where no cell is left to test, or where there are not
    # more users than cells
    p_value: float
    counts: FloatArray  # (A, B) events of each cell
    effects: FloatArray  # (A, B) added effect of each cell; nan without events


def interactions(fit: Fit, batches: Iterable[Batch], pairs: Sequence[Pair]) -> list[Interaction]:
    """Test pairs of factors in one pass over the batches that ``fit`` was fitted to."""
    sums = [_PairSums(pair, fit) for pair in pairs]
    for batch, residuals in fit.residuals(batches):
        columns = batch.columns()
        for pair_sums in sums:
            pair_sums.add(batch, columns, residuals)
    return [pair_sums.finish() for pair_sums in sums]


class _PairSums:
    """Sums for the test of one pair, gathered batch by batch."""

    def __init__(self, pair: Pair, fit: Fit) -> None:
        sizes = fit.moments.sizes
        self._pair, self._fit, self._shape = pair, fit, (sizes[pair[0]], sizes[pair[1]])
        self._cells = self._shape[0] * self._shape[1]
        self._moved = np.zeros(self._cells)  # Z'e
        self._crossed = np.zeros((self._cells, sum(sizes)))  # Z' times every level
        self._meat = np.zeros((self._cells + len(fit.coefficients),) * 2)

    def add(self, batch: Batch, columns: Sequence[IntArray], residuals: FloatArray) -> None:
        first, second = self._pair
        cell, moments = columns[first] * self._shape[1] + columns[second], self._fit.moments
        self._moved += np.bincount(cell, residuals, minlength=self._cells)
        for codes, size, block in zip(columns, moments.sizes, moments.blocks, strict=True):
            both = np.bincount(cell * size + codes, minlength=self._cells * size)
            self._crossed[:, block] += both.reshape(self._cells, size)
        sizes = (self._cells, *moments.sizes)
        sums = sums_by_user(batch.user, [cell, *columns], sizes, residuals)
        levels = self._fit.columns(sums[:, self._cells :])
        scores = np.concatenate([sums[:, : self._cells], levels], axis=1)
        self._meat += scores.T @ scores

    def finish(self) -> Interaction:
        fit, cells = self._fit, self._cells
        crossed = fit.columns(self._crossed)  # Z'X
        along = crossed @ fit.inverse
        counts = crossed[:, 0]
        own = np.diag(counts) - along @ crossed.T  # Z~'Z~
        change = np.concatenate([np.eye(cells), -along], axis=1)
        covariance = fit.users / (fit.users - 1) * change @ self._meat @ change.T  # of Z~'e
        sizes, axes = np.linalg.eigh(own)
        kept = sizes > SINGULAR * max(float(counts.max()), 1.0)
        axes, sizes = axes[:, kept], sizes[kept]
        inverse = (axes / sizes) @ axes.T
        gamma, errors = inverse @ self._moved, inverse @ covariance @ inverse
        return Interaction(
            self._pair,
            spread_of(gamma, errors, own / fit.moments.events),
            zero_test(axes.T @ self._moved, axes.T @ covariance @ axes, fit.users),
            counts.reshape(self._shape),
            _without_margins(gamma.reshape(self._shape), counts.reshape(self._shape)),
        )


def _without_margins(effects: FloatArray, counts: FloatArray) -> FloatArray:
    """(A, B) effects without the common part of each row and column, weighted by events."""
    rows, columns = np.indices(effects.shape).reshape(2, -1)
    base = np.concatenate([np.eye(effects.shape[0])[rows], np.eye(effects.shape[1])[columns]], 1)
    root = np.sqrt(counts.ravel())
    common = np.linalg.lstsq(base * root[:, None], effects.ravel() * root)[0]
    net = (effects.ravel() - base @ common).reshape(effects.shape)
    return np.where(counts > 0, net, np.nan)
