"""Shapley values of any players from a budget of coalitions, with a rule when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_influence.attribution.coalition_process import Estimate, estimate, plan
from llm_influence.attribution.coalitions import by_leverage, every_coalition, marginal_weights
from llm_influence.attribution.shapley_regression import regress
from llm_influence.types import BoolArray, FloatArray

Surrogate = Literal["process", "linear"]
Values = Callable[[Sequence[BoolArray]], list[FloatArray]]
ROUNDS = 4
"""After each quarter of the passes it is seen whether the rest is needed."""
HALVES = 10
"""Random halves of the pairs, whose answers tell the linear surrogate's standard errors."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on a history.

    Attributes:
        passes: The most coalitions.
        tolerance: Enough, if the largest standard error is within this share of the spread
            (standard deviation) of the scores. 0: spend all.
        surrogate: ``process`` or ``linear``, see `shapley.shapley`.
    """

    passes: int
    tolerance: float = 0.0
    surrogate: Surrogate = "process"

    def rounds(self) -> list[int]:
        """Coalitions after each round, even numbers so that pairs stay together."""
        first = 1 if self.tolerance else ROUNDS
        return [self.passes * done // ROUNDS // 2 * 2 for done in range(first, ROUNDS)] + [
            self.passes
        ]

    def met(self, found: Estimate) -> bool:
        """Whether the errors are within the tolerance."""
        return bool(found.standard_errors.max() <= self.tolerance * found.scores.std())


def sample_shapley(
    draws: Sequence[np.random.Generator], values: Values, sizes: Sequence[int], budget: Budget
) -> list[Estimate]:
    """Shapley values of N games.

    Args:
        draws: N sources of chance.
        values: N arrays (M, n) of coalitions in, N arrays (M,) of values out.
        sizes: Players n of each game; ``budget.passes`` is at least 2n + 2 or 2^n.
        budget: What may be spent. A game of 2^n <= passes is computed exactly.
    """
    whole = [1 << players <= budget.passes for players in sizes]
    plans = [
        every_coalition(players) if exact else _plan(draw, players, budget)
        for draw, players, exact in zip(draws, sizes, whole, strict=True)
    ]
    found: dict[int, Estimate] = {}
    for spent in budget.rounds():
        asked = [masks[:0] for masks in plans]
        for row, (players, exact) in enumerate(zip(sizes, whole, strict=True)):
            if row in found and (exact or budget.met(found[row])):
                continue
            if exact or spent >= 2 * players + 2:
                asked[row] = plans[row] if exact else plans[row][:spent]
        for row, (masks, known) in enumerate(zip(asked, values(asked), strict=True)):
            if len(masks):
                found[row] = _answer(masks, known, whole[row], draws[row], budget)
    return [found[row] for row in range(len(plans))]


def exact_shapley_values(values: FloatArray) -> FloatArray:
    """(n,) Shapley values from the (2^n,) values of `every_coalition`."""
    players = len(values).bit_length() - 1
    masks = every_coalition(players)
    weights = marginal_weights(players)[masks.sum(1)]
    scores = np.empty(players)
    for player in range(players):
        without = np.flatnonzero(~masks[:, player])
        scores[player] = weights[without] @ (values[without | 1 << player] - values[without])
    return scores


def _plan(draw: np.random.Generator, players: int, budget: Budget) -> BoolArray:
    if budget.surrogate == "process":
        return plan(draw, players, budget.passes)
    return by_leverage(draw, players, budget.passes // 2 * 2)


def _answer(
    masks: BoolArray,
    values: FloatArray,
    exact: bool,
    draw: np.random.Generator,
    budget: Budget,
) -> Estimate:
    if exact:
        return Estimate(exact_shapley_values(values), np.zeros(masks.shape[1]))
    if budget.surrogate == "process":
        return estimate(masks, values)
    scores = regress(masks, values)
    return Estimate(scores, _spread_of_halves(masks, values, scores, draw))


def _spread_of_halves(
    masks: BoolArray, values: FloatArray, scores: FloatArray, draw: np.random.Generator
) -> FloatArray:
    """Standard errors: an answer from half of the pairs is as far from the answer from all as that
    is from the truth, on average. The certain coalitions are in every half.
    """  # noqa: D205
    certain = 2 * masks.shape[1] + 2
    pairs = (len(masks) - certain) // 2
    squares = np.zeros_like(scores)
    for _ in range(HALVES):
        half = np.sort(draw.permutation(pairs)[: (pairs + 1) // 2])
        drawn = certain + np.stack([2 * half, 2 * half + 1], axis=1).ravel()
        rows = np.concatenate([np.arange(certain), drawn])
        squares += (regress(masks[rows], values[rows]) - scores) ** 2
    return np.sqrt(squares / HALVES)
