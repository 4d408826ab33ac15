"""Shapley values: exact, from a sample of coalitions, and from random orders.

An event gets what it adds to the target, averaged over all orders in which the events could have
come to the model. No other division of ``f(all) - f(none)`` is additive over targets, gives equal
events equal scores, and gives nothing to an event that never adds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llm_influence.attribution.registry import (
    Attribution,
    Games,
    Perturbation,
    register,
    removal_attribution,
)
from llm_influence.attribution.shapley_process import Estimate, estimate, plan
from llm_influence.errors import ExplanationError
from llm_influence.numerics import by_leverage, every_coalition, exact_shapley
from llm_influence.types import BoolArray, FloatArray

Surrogate = Literal["process", "linear"]
Values = Callable[[Sequence[BoolArray]], list[FloatArray]]
ROUNDS = 4
"""Rounds of sampling; after each one, a history stops if its errors are within the tolerance."""
HALVES = 10
"""Random halves of the sample from which the linear surrogate's standard errors are computed."""
MOST_PLAYERS = 256
"""Tables of the process grow with the cube of the players; longer histories are refused."""
EQUATION = "a_i = sum over S without i of |S|! (n-|S|-1)! / n! (f(S with i) - f(S))"


def regress(masks: BoolArray, values: FloatArray) -> FloatArray:
    """Shapley values as a weighted regression (Charnes et al. 1988; Lundberg and Lee 2017).

    A coalition counts as often as there are coalitions of its size for each one drawn. With all
    coalitions the result is exact. With coalitions in pairs, pair effects cancel, so that games of
    order two are exact.

    Args:
        masks: (M, n) distinct coalitions of `by_leverage`, the empty and the full one first,
            M >= n + 1.
        values: (M,) their values.

    Returns:
        (n,) the best-fitting scores that add up to ``f(all) - f(none)``.
    """
    players = masks.shape[1]
    moved = float(values[1] - values[0])
    if players == 1:
        return np.array([moved])
    sizes = masks[2:].sum(1)
    drawn = np.bincount(sizes, minlength=players + 1)[sizes]
    importance = np.sqrt((players - 1) / (sizes * (players - sizes) * drawn))
    equal = moved / players
    centre = np.eye(players) - 1 / players  # keeps the sum of the scores
    features = masks[2:] @ centre * importance[:, None]
    rest = (values[2:] - values[0] - equal * sizes) * importance
    scores: FloatArray = centre @ np.linalg.lstsq(features, rest, rcond=None)[0] + equal
    return scores


@dataclass(frozen=True, slots=True)
class Budget:
    """Model evaluations that sampling may spend on a game.

    Attributes:
        evaluations: The most coalitions.
        tolerance: Sampling stops if the largest standard error is within this share of the
            largest score. 0: spend all.
        surrogate: ``process`` or ``linear``, see `Shapley`.
    """

    evaluations: int
    tolerance: float = 0.0
    surrogate: Surrogate = "process"

    def rounds(self) -> list[int]:
        """Coalitions after each round, even numbers so that pairs stay together."""
        first = 1 if self.tolerance else ROUNDS
        early = [self.evaluations * done // ROUNDS // 2 * 2 for done in range(first, ROUNDS)]
        return [*early, self.evaluations]

    def met(self, answer: Estimate) -> bool:
        """Whether the errors are within the tolerance."""
        return bool(answer.standard_errors.max() <= self.tolerance * np.abs(answer.scores).max())


def sample_shapley(
    generators: Sequence[np.random.Generator],
    values: Values,
    sizes: Sequence[int],
    budget: Budget,
) -> list[Estimate]:
    """Shapley values of N games from a sample of their coalitions.

    Args:
        generators: N random generators.
        values: From N arrays (M, n) of coalitions to N arrays (M,) of values.
        sizes: Players n of each game; ``budget.evaluations`` is at least 2n + 2 or 2^n.
        budget: What may be spent. A game with 2^n <= evaluations is computed exactly.
    """
    whole = [1 << players <= budget.evaluations for players in sizes]
    plans = [
        every_coalition(players) if exact else _plan(draw, players, budget)
        for draw, players, exact in zip(generators, sizes, whole, strict=True)
    ]
    answers: dict[int, Estimate] = {}
    for spent in budget.rounds():
        requests = [masks[:0] for masks in plans]
        for row, (players, exact) in enumerate(zip(sizes, whole, strict=True)):
            if row in answers and (exact or budget.met(answers[row])):
                continue
            if exact or spent >= 2 * players + 2:
                requests[row] = plans[row] if exact else plans[row][:spent]
        for row, (masks, known) in enumerate(zip(requests, values(requests), strict=True)):
            if len(masks) and whole[row]:
                answers[row] = Estimate(exact_shapley(known), np.zeros(sizes[row]))
            elif len(masks):
                answers[row] = _fitted(masks, known, generators[row], budget.surrogate)
    return [answers[row] for row in range(len(plans))]


def _plan(draw: np.random.Generator, players: int, budget: Budget) -> BoolArray:
    if budget.surrogate == "process":
        return plan(draw, players, budget.evaluations)
    return by_leverage(draw, players, budget.evaluations // 2 * 2)


def _fitted(
    masks: BoolArray, values: FloatArray, draw: np.random.Generator, surrogate: Surrogate
) -> Estimate:
    """Shapley values by the surrogate.

    The linear one has standard errors from halves of its pairs: an answer from half of the pairs is
    on average as far from the answer from all as that is from the truth. The certain coalitions
    are in every half.
    """
    if surrogate == "process":
        return estimate(masks, values)
    scores = regress(masks, values)
    certain = 2 * masks.shape[1] + 2
    pairs = (len(masks) - certain) // 2
    squares = np.zeros_like(scores)
    for _ in range(HALVES):
        half = np.sort(draw.permutation(pairs)[: (pairs + 1) // 2])
        drawn = certain + np.stack([2 * half, 2 * half + 1], axis=1).ravel()
        rows = np.concatenate([np.arange(certain), drawn])
        squares += (regress(masks[rows], values[rows]) - scores) ** 2
    return Estimate(scores, np.sqrt(squares / HALVES))


@register
@dataclass(frozen=True)
class ExactShapley(Perturbation):
    """Shapley values from all 2^n coalitions.

    Args:
        max_players: Longest history that is not refused; each further event doubles the
            evaluations.

    Raises:
        ExplanationError: When it runs: a history has more events than ``max_players``.
    """

    name = "exact_shapley"
    cost = "2^E model evaluations"
    estimates = "the Shapley value"
    equation = EQUATION
    paper = "Shapley 1953, doi:10.1515/9781400881970-018"
    caution = (
        "It evaluates subsets that no real user had. Twelve events already take 4,096 evaluations."
    )

    max_players: int = 12

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        for row, players in enumerate(task.sizes):
            if players > self.max_players:
                raise ExplanationError(
                    f"{players} events have {2**players:,} coalitions",
                    where=f"method 'exact_shapley', {task.label(row)}",
                    expected=f"at most {self.max_players} events",
                    fix="use method 'shapley', which samples, keep only the last events, or raise "
                    "max_players",
                )
        values = task.values([every_coalition(players) for players in task.sizes])
        scores = [exact_shapley(value) for value in values]
        return removal_attribution(task, scores, [np.zeros(len(row)) for row in scores])


class Sampling(Perturbation):
    """A perturbation method with a budget of ``evaluations`` for each history."""

    evaluations: int

    def __post_init__(self) -> None:
        if not isinstance(self.evaluations, int) or self.evaluations < 1:
            raise self.option_error("evaluations", "a whole number of at least 1")

    def check_budget(self, task: Games, row: int, needed: int) -> None:
        """Refuse a history that needs more evaluations than allowed.

        Raises:
            ExplanationError: It does.
        """
        if self.evaluations < needed:
            raise ExplanationError(
                f"{self.evaluations} evaluations for {task.sizes[row]} events",
                where=f"method {self.name!r}, {task.label(row)}",
                expected=f"at least {needed}",
                fix=f"set evaluations to {needed} or more, or keep only the last events",
            )


@register
@dataclass(frozen=True)
class Shapley(Sampling):
    """Shapley values from a sample of coalitions; exact where ``evaluations`` allows all of them.

    Surrogate ``process``: a Gaussian process chooses the coalitions, is fitted to their values and
    summed over all others in closed form. Surrogate ``linear``: the Shapley regression on
    coalitions drawn in pairs, by leverage, without replacement. It makes no assumption about the
    game, and with the same evaluations its error was five to eight times larger.

    Args:
        evaluations: Most model evaluations for a history, at least 2E + 2 (or 2^E).
        tolerance: Stop after a quarter, half or three quarters of the evaluations if the largest
            standard error is within this share of the largest score. 0: spend all. ``converged``
            in the quality card says whether it was reached.
        surrogate: ``process`` or ``linear``.

    Raises:
        ExplanationError: An option is out of range; when it runs: too few evaluations or more than
            256 events.
    """

    name = "shapley"
    cost = "at most `evaluations` (200); 2^E where that is less"
    estimates = "the Shapley value, with standard errors"
    equation = EQUATION
    paper = "Shapley 1953; sampling by leverage: Musco and Witter 2024, arXiv:2410.01917"
    caution = (
        "With less than 5 evaluations an event the ranking is rough: look at the standard errors."
    )

    evaluations: int = 200
    tolerance: float = 0.05
    surrogate: Surrogate = "process"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance >= 0:
            raise self.option_error("tolerance", "0 or more")
        if self.surrogate not in get_args(Surrogate):
            raise self.option_error("surrogate", "'process' or 'linear'")

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        for row, players in enumerate(task.sizes):
            self.check_budget(task, row, min(2 * players + 2, 1 << players))
            if players > MOST_PLAYERS:
                raise ExplanationError(
                    f"{players} events",
                    where=f"method 'shapley', {task.label(row)}",
                    expected=f"at most {MOST_PLAYERS}",
                    fix="use method 'coarse_to_fine', or keep only the last events",
                )
        budget = Budget(self.evaluations, self.tolerance, self.surrogate)
        answers = sample_shapley(task.generators(), task.values, task.sizes, budget)
        return estimated(task, answers, np.array([budget.met(answer) for answer in answers]))


@register
@dataclass(frozen=True)
class PermutationShapley(Sampling):
    """Shapley values from random orders, each walked forwards and backwards (antithetic).

    Standard errors are those of the mean over pairs of orders; nan with a single pair.

    Args:
        evaluations: Most model evaluations for a history, at least 2E.

    Raises:
        ExplanationError: When it runs: too few evaluations for one order and its reverse.
    """

    name = "permutation_shapley"
    cost = "at most `evaluations` (400), 2 (E - 1) for each pair of orders"
    estimates = "the Shapley value, with standard errors"
    equation = "a_i = mean over orders, each also reversed, of f(before i and i) - f(before i)"
    paper = (
        "Castro et al. 2009, doi:10.1016/j.cor.2008.04.004; Mitchell et al. 2022, arXiv:2104.12199"
    )
    caution = "Unbiased and slow: the error of 'shapley' is several times smaller at equal cost."

    evaluations: int = 400

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        orders = []
        for row, (players, draw) in enumerate(zip(task.sizes, task.generators(), strict=True)):
            self.check_budget(task, row, 2 * players)
            pairs = (self.evaluations - 2) // max(2 * (players - 1), 1)
            forward = np.stack([draw.permutation(players) for _ in range(max(pairs, 1))])
            orders.append(np.stack([forward, forward[:, ::-1]], axis=1))  # (pairs, 2, n)
        values = task.values([_walks(order) for order in orders])
        return estimated(task, [_mean_gain(*pair) for pair in zip(orders, values, strict=True)])


def _walks(orders: np.ndarray) -> BoolArray:
    """(pairs * 2 * (n + 1), n): the coalitions along each order, from none to all."""
    players = orders.shape[-1]
    rank = np.argsort(orders, axis=-1)[..., None, :]
    members: BoolArray = rank < np.arange(players + 1)[:, None]
    return members.reshape(-1, players)


def _mean_gain(orders: np.ndarray, values: np.ndarray) -> Estimate:
    """Mean marginal contributions from the values along (pairs, 2, n) orders."""
    pairs, _, players = orders.shape
    added = np.diff(values.reshape(pairs, 2, players + 1), axis=-1)
    gains = np.take_along_axis(added, np.argsort(orders, axis=-1), axis=-1).mean(1)
    if players <= 2:  # an order and its reverse are all there are
        return Estimate(gains.mean(0), np.zeros(players))
    if pairs == 1:
        return Estimate(gains[0], np.full(players, np.nan))
    return Estimate(gains.mean(0), gains.std(0, ddof=1) / np.sqrt(pairs))


def estimated(
    games: Games, answers: Sequence[Estimate], converged: BoolArray | None = None
) -> Attribution:
    """The attribution of N estimates."""
    scores = [answer.scores for answer in answers]
    errors = [answer.standard_errors for answer in answers]
    return removal_attribution(games, scores, errors, converged)
