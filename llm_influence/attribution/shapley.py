"""Shapley values as a weighted regression (Charnes et al. 1988; Lundberg and Lee 2017).

Shapley values of any players from a budget of coalitions, with a rule when to stop.

Shapley values: exact, from a sample of coalitions, and from random orders.

An event gets what it adds, averaged over all orders in which the events could have come to the
model. It is the only division of ``f(all) - f(none)`` that is additive over targets, treats equals
alike and gives nothing to an event that never adds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llm_influence import numerics
from llm_influence.attribution.coalitions import by_leverage
from llm_influence.attribution.registry import Attribution, Task, generator, register
from llm_influence.attribution.shapley_process import Estimate, estimate, plan
from llm_influence.errors import ExplanationError, choices
from llm_influence.types import BoolArray, FloatArray


def regress(masks: BoolArray, values: FloatArray) -> FloatArray:
    """(n,) Shapley values from coalitions drawn by `coalitions.by_leverage`.

    Args:
        masks: (M, n) distinct coalitions, the empty and the full one first, M >= n + 1.
        values: (M,) their values.

    Returns:
        The scores that fit best among those which add up to ``f(all) - f(none)``. A coalition
        counts as often as those of its size of which it is the sample. With all coalitions this is
        exact; with coalitions in pairs pair effects cancel, so that games of order two are exact.
    """
    players = masks.shape[1]
    moved = float(values[1] - values[0])
    if players == 1:
        return np.array([moved])
    sizes = masks[2:].sum(1)
    drawn = np.bincount(sizes, minlength=players + 1)[sizes]
    importance = np.sqrt((players - 1) / (sizes * (players - sizes) * drawn))
    equal = moved / players
    centre = np.eye(players) - 1 / players  # holds the sum where it is
    features = masks[2:] @ centre * importance[:, None]
    rest = (values[2:] - values[0] - equal * sizes) * importance
    found: FloatArray = centre @ np.linalg.lstsq(features, rest, rcond=None)[0] + equal
    return found


Surrogate = Literal["process", "linear"]
Values = Callable[[Sequence[BoolArray]], list[FloatArray]]
ROUNDS = 4
"""After each quarter of the evaluations it is seen whether the rest is needed."""
HALVES = 10
"""Random halves of the pairs, whose answers tell the linear surrogate's standard errors."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on a history.

    Attributes:
        evaluations: The most coalitions.
        tolerance: Enough, if the largest standard error is within this share of the spread
            (standard deviation) of the scores. 0: spend all.
        surrogate: ``process`` or ``linear``, see `shapley.shapley`.
    """

    evaluations: int
    tolerance: float = 0.0
    surrogate: Surrogate = "process"

    def rounds(self) -> list[int]:
        """Coalitions after each round, even numbers so that pairs stay together."""
        first = 1 if self.tolerance else ROUNDS
        return [self.evaluations * done // ROUNDS // 2 * 2 for done in range(first, ROUNDS)] + [
            self.evaluations
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
        sizes: Players n of each game; ``budget.evaluations`` is at least 2n + 2 or 2^n.
        budget: What may be spent. A game of 2^n <= evaluations is computed exactly.
    """
    whole = [1 << players <= budget.evaluations for players in sizes]
    plans = [
        numerics.every_coalition(players) if exact else _plan(draw, players, budget)
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


def _plan(draw: np.random.Generator, players: int, budget: Budget) -> BoolArray:
    if budget.surrogate == "process":
        return plan(draw, players, budget.evaluations)
    return by_leverage(draw, players, budget.evaluations // 2 * 2)


def _answer(
    masks: BoolArray,
    values: FloatArray,
    exact: bool,
    draw: np.random.Generator,
    budget: Budget,
) -> Estimate:
    if exact:
        return Estimate(numerics.exact_shapley(values), np.zeros(masks.shape[1]))
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


MOST_PLAYERS = 256
"""Tables of the process grow with the cube of the players; more than this are refused."""
EQUATION = "a_i = sum over S without i of |S|! (n-|S|-1)! / n! (f(S with i) - f(S))"


@register(
    name="exact_shapley",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="2^E model evaluations",
    estimates="the Shapley value",
    equation=EQUATION,
    paper="Shapley 1953, doi:10.1515/9781400881970-018",
    caution="Reads subsets that no user ever was; twelve events already take 4,096 evaluations.",
)
def exact_shapley(task: Task, max_players: int = 12) -> Attribution:
    """Shapley values from all 2^n coalitions.

    Args:
        task: What to explain.
        max_players: Longest history not refused; each further event doubles the evaluations.

    Raises:
        ExplanationError: A history has more events than ``max_players``.
    """
    for row, players in enumerate(task.sizes):
        if players > max_players:
            raise ExplanationError(
                f"{players} events have {2**players:,} coalitions",
                where=f"method 'exact_shapley', {_user(task, row)}",
                expected=f"at most {max_players} events",
                fix="use method 'shapley', which samples, keep the last events alone, or raise "
                "max_players",
            )
    values = task.values([numerics.every_coalition(players) for players in task.sizes])
    scores = [numerics.exact_shapley(value) for value in values]
    return finish(task, [Estimate(row, np.zeros(len(row))) for row in scores])


@register(
    name="shapley",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="at most `evaluations` (200); 2^E where that is less",
    estimates="the Shapley value, with standard errors",
    equation=EQUATION,
    paper="Shapley 1953; sampling by leverage: Musco and Witter 2024, arXiv:2410.01917",
    caution="With less than 5 evaluations an event the ranking is rough: look at the standard errors.",
)
def shapley(
    task: Task, evaluations: int = 200, tolerance: float = 0.05, surrogate: Surrogate = "process"
) -> Attribution:
    """Shapley values from a sample of coalitions; exact where ``evaluations`` allows all of them.

    ``process``: a Gaussian process chooses the coalitions, is fitted to their values and summed
    over all others in closed form (`coalition_process`). ``linear``: the Shapley regression on
    coalitions drawn in pairs, by leverage, without replacement; free of assumptions, and at the
    same evaluations five to eight times less accurate on the model measured.

    Args:
        task: What to explain.
        evaluations: Most model evaluations a history, at least 2E + 2 (or 2^E).
        tolerance: Stop after a quarter, half or three quarters of the evaluations if the largest
            standard error is within this share of the standard deviation of the scores; 0 spends
            all. ``converged`` says whether it was reached.
        surrogate: ``process`` or ``linear``.

    Raises:
        ExplanationError: Too few evaluations, more than `MOST_PLAYERS` events, a negative tolerance or
            an unknown surrogate.
    """
    check_budget(task, "shapley", evaluations, tolerance)
    if surrogate not in get_args(Surrogate):
        raise ExplanationError(
            f"surrogate {surrogate!r}",
            where="method 'shapley'",
            expected=choices(get_args(Surrogate), surrogate),
            fix="choose one of them",
        )
    for row, players in enumerate(task.sizes):
        check_evaluations(task, row, "shapley", evaluations, min(2 * players + 2, 1 << players))
        if players > MOST_PLAYERS:
            raise ExplanationError(
                f"{players} events",
                where=f"method 'shapley', {_user(task, row)}",
                expected=f"at most {MOST_PLAYERS}",
                fix="use method 'coarse_to_fine', or keep the last events alone",
            )
    budget = Budget(evaluations, tolerance, surrogate)
    draws = [generator(task, row) for row in range(len(task.sizes))]
    return finish(task, sample_shapley(draws, task.values, task.sizes, budget), budget)


@register(
    name="permutation_shapley",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="at most `evaluations` (400), 2 (E - 1) for each pair of orders",
    estimates="the Shapley value, with standard errors",
    equation="a_i = mean over orders, each also reversed, of f(before i and i) - f(before i)",
    paper="Castro et al. 2009, doi:10.1016/j.cor.2008.04.004; Mitchell et al. 2022, "
    "arXiv:2104.12199",
    caution="Unbiased and slow: 'shapley' is several times nearer for the same evaluations.",
)
def permutation_shapley(task: Task, evaluations: int = 400) -> Attribution:
    """Shapley values from random orders, each walked forwards and backwards (antithetic).

    Standard errors are those of the mean over pairs of orders; nan with a single pair.

    Args:
        task: What to explain.
        evaluations: Most model evaluations a history, at least 2E.

    Raises:
        ExplanationError: Too few evaluations for one order and its reverse.
    """
    check_budget(task, "permutation_shapley", evaluations)
    orders = []
    for row, players in enumerate(task.sizes):
        check_evaluations(task, row, "permutation_shapley", evaluations, 2 * players)
        pairs = (evaluations - 2) // max(2 * (players - 1), 1)
        draw = generator(task, row)
        forward = np.stack([draw.permutation(players) for _ in range(max(pairs, 1))])
        orders.append(np.stack([forward, forward[:, ::-1]], axis=1))  # (pairs, 2, n)
    values = task.values([_walks(order) for order in orders])
    return finish(task, [_mean(order, value) for order, value in zip(orders, values, strict=True)])


def _walks(orders: np.ndarray) -> BoolArray:
    """(pairs * 2 * (n + 1), n): the coalitions met along each order, from none to all."""
    players = orders.shape[-1]
    rank = np.argsort(orders, axis=-1)[..., None, :]
    met: BoolArray = rank < np.arange(players + 1)[:, None]
    return met.reshape(-1, players)


def _mean(orders: np.ndarray, values: np.ndarray) -> Estimate:
    pairs, _, players = orders.shape
    added = np.diff(values.reshape(pairs, 2, players + 1), axis=-1)
    each = np.take_along_axis(added, np.argsort(orders, axis=-1), axis=-1).mean(1)
    if players <= 2:  # an order and its reverse are all there are
        return Estimate(each.mean(0), np.zeros(players))
    if pairs == 1:
        return Estimate(each[0], np.full(players, np.nan))
    return Estimate(each.mean(0), each.std(0, ddof=1) / np.sqrt(pairs))


def finish(task: Task, found: list[Estimate], budget: Budget | None = None) -> Attribution:
    """The attribution of these estimates; what the target is worth at both ends comes from it."""
    base, full = task.values.ends()
    return Attribution(
        scores=[estimate.scores for estimate in found],
        prompt=np.zeros(len(found)),
        base=base,
        full=full,
        evaluations=task.values.evaluations.copy(),
        standard_errors=[estimate.standard_errors for estimate in found],
        converged=np.array([budget.met(estimate) for estimate in found]) if budget else None,
    )


def check_budget(task: Task, method: str, evaluations: int, tolerance: float = 0.0) -> None:
    """Refuse a budget that is none.

    Raises:
        ExplanationError: ``evaluations`` is no positive whole number or ``tolerance`` is negative.
    """
    if not isinstance(evaluations, int) or evaluations < 1:
        raise ExplanationError(
            f"evaluations is {evaluations!r}",
            where=f"method {method!r}",
            expected="a whole number of at least 1",
            fix="leave it out for the default",
        )
    if not tolerance >= 0:
        raise ExplanationError(
            f"tolerance is {tolerance!r}",
            where=f"method {method!r}",
            expected="0 or more",
            fix="use 0 to spend all evaluations",
        )


def check_evaluations(task: Task, row: int, method: str, evaluations: int, needed: int) -> None:
    """Refuse a history that needs more evaluations than allowed.

    Raises:
        ExplanationError: It does.
    """
    if evaluations < needed:
        raise ExplanationError(
            f"{evaluations} evaluations for {task.sizes[row]} events",
            where=f"method {method!r}, {_user(task, row)}",
            expected=f"at least {needed}",
            fix=f"set evaluations to {needed} or more, or keep the last events alone",
        )


def _user(task: Task, row: int) -> str:
    return f"user {task.histories[row].user_id!r}"
