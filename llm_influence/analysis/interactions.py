"""Pairs of factors whose effect together differs from the sum of their effects.

For each pair the dummies of its cells are added to the regression of all factors. By the theorem of
Frisch, Waugh and Lovell their coefficients follow from the residuals of that regression:

    g = (Z~'Z~)^-1 Z'e,   Z~ = Z - X (X'X)^-1 X'Z,

so that one more pass serves all pairs. The test is the score test, its variance over users.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.analysis.coded import Batch
from llm_influence.analysis.regression import (
    SINGULAR,
    Fit,
    UserSums,
    columns_of,
    small_sample,
    spread_of,
    with_residuals,
    zero_test,
)
from llm_influence.types import FloatArray, IntArray

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Interaction:
    """One pair.

    Attributes:
        pair: Numbers of the two factors.
        spread: Standard deviation over events of what the pair adds to both effects, freed of
            chance, with the ends of its interval.
        p_value: Of nothing being added; nan where no cell is left to test, or where there are not
            more users than cells.
        counts: (A, B) events in each cell.
        effects: (A, B) what each cell adds; nan where it has no event.
    """

    pair: Pair
    spread: tuple[float, float, float]
    p_value: float
    counts: FloatArray
    effects: FloatArray


class _Sums:
    """What a pair needs of the data, gathered batch by batch."""

    def __init__(self, pair: Pair, fit: Fit) -> None:
        self._pair, self._fit, sizes = pair, fit, fit.moments.sizes
        self.shape = (sizes[pair[0]], sizes[pair[1]])
        self.cells = self.shape[0] * self.shape[1]
        self.moved = np.zeros(self.cells)  # Z'e
        self.crossed = np.zeros((self.cells, sum(sizes)))  # Z' times every level
        self.meat = np.zeros((self.cells + len(fit.coefficients),) * 2)
        self._users = UserSums((self.cells, *sizes))

    def add(self, batch: Batch, columns: Sequence[IntArray], residuals: FloatArray) -> None:
        first, second = self._pair
        cell = columns[first] * self.shape[1] + columns[second]
        self.moved += np.bincount(cell, residuals, minlength=self.cells)
        moments = self._fit.moments
        for codes, size, block in zip(columns, moments.sizes, moments.blocks, strict=True):
            both = np.bincount(cell * size + codes, minlength=self.cells * size)
            self.crossed[:, block] += both.reshape(self.cells, size)
        self._add_meat(self._users.add(batch.user, [cell, *columns], residuals))

    def finish(self) -> Interaction:
        self._add_meat(self._users.last())
        fit, cells = self._fit, self.cells
        crossed = columns_of(self.crossed, fit.moments.sizes, fit.kept)  # Z'X
        along = crossed @ fit.inverse
        counts = crossed[:, 0]
        own = np.diag(counts) - along @ crossed.T  # Z~'Z~
        change = np.concatenate([np.eye(cells), -along], axis=1)
        covariance = small_sample(fit.users) * change @ self.meat @ change.T  # of Z~'e
        sizes, axes = np.linalg.eigh(own)
        kept = sizes > SINGULAR * max(float(counts.max()), 1.0)
        axes, sizes = axes[:, kept], sizes[kept]
        inverse = (axes / sizes) @ axes.T
        gamma, errors = inverse @ self.moved, inverse @ covariance @ inverse
        return Interaction(
            self._pair,
            spread_of(gamma, errors, own / fit.moments.events),
            zero_test(axes.T @ self.moved, axes.T @ covariance @ axes, fit.users),
            counts.reshape(self.shape),
            _net(gamma.reshape(self.shape), counts.reshape(self.shape)),
        )

    def _add_meat(self, sums: FloatArray) -> None:
        levels = columns_of(sums[:, self.cells :], self._fit.moments.sizes, self._fit.kept)
        scores = np.concatenate([sums[:, : self.cells], levels], axis=1)
        self.meat += scores.T @ scores


def interactions(fit: Fit, batches: Iterable[Batch], pairs: Sequence[Pair]) -> list[Interaction]:
    """Test pairs of factors in one pass over the batches that ``fit`` was fitted to."""
    sums = [_Sums(pair, fit) for pair in pairs]
    sizes = fit.moments.sizes
    for batch, residuals in with_residuals(sizes, fit.kept, fit.coefficients, batches):
        columns = batch.columns()
        for each in sums:
            each.add(batch, columns, residuals)
    return [each.finish() for each in sums]


def _net(effects: FloatArray, counts: FloatArray) -> FloatArray:
    """(A, B) effects without what a row or a column has in common, weighted by events."""
    rows, columns = np.indices(effects.shape).reshape(2, -1)
    base = np.concatenate([np.eye(effects.shape[0])[rows], np.eye(effects.shape[1])[columns]], 1)
    root = np.sqrt(counts.ravel())
    common = np.linalg.lstsq(base * root[:, None], effects.ravel() * root)[0]
    net = (effects.ravel() - base @ common).reshape(effects.shape)
    return np.where(counts > 0, net, np.nan)
