"""Methods that remove events and look at what happens.

A sparse linear model of what any part of the history is worth.

Coarse to fine: long histories by blocks first, then the events of the blocks that matter.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV

from llm_influence.attribution.coalitions import random_coalitions
from llm_influence.attribution.registry import Attribution, Task, generator, register
from llm_influence.attribution.shapley import (
    Budget,
    check_budget,
    check_evaluations,
    finish,
    sample_shapley,
)
from llm_influence.attribution.shapley_process import Estimate
from llm_influence.errors import ExplanationError
from llm_influence.types import BoolArray, FloatArray, IntArray


@register(
    name="leave_one_out",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="E + 2 model evaluations",
    estimates="f(all events) - f(all but this one)",
    equation="a_i = f(E) - f(E without i)",
    paper="Li et al. 2016, arXiv:1612.08220",
    caution="Two events that say the same thing hide each other: each alone can be spared.",
)
def leave_one_out(task: Task) -> Attribution:
    """Influence of an event is what the target loses when that event alone is removed.

    ``score_i = f(E) - f(E without i)``. Scores do not promise to add up to ``f(E) - f(none)``.
    """
    values = task.values([_masks(size) for size in task.sizes])
    return Attribution(
        scores=[value[1] - value[2:] for value in values],
        prompt=np.zeros(len(values)),
        base=np.array([value[0] for value in values]),
        full=np.array([value[1] for value in values]),
        evaluations=task.values.evaluations.copy(),
    )


def _masks(size: int) -> np.ndarray:
    """(E + 2, E): no event, all events, and all but each."""
    none, everything = np.zeros((1, size), dtype=bool), np.ones((1, size), dtype=bool)
    return np.concatenate([none, everything, ~np.eye(size, dtype=bool)])


FOLDS = 5
NEGLIGIBLE = 1e-6
"""Weights below this share of the largest are none."""


@register(
    name="sparse_surrogate",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="`evaluations` (100) + 2; 2^E where that is less",
    estimates="weights of the sparse linear model that best predicts f when each event is kept or "
    "removed by the toss of a coin",
    equation="a minimises mean over random S of (f(S) - b - sum of a over S)^2 + penalty |a|",
    paper="ContextCite: Cohen-Wang et al. 2024, arXiv:2409.00729; LASSO: Tibshirani 1996",
    caution="Not a Shapley value: it speaks of histories cut in half, where everything left weighs "
    "more than in the whole one, and it does not add up to f(all) - f(none).",
)
def sparse_surrogate(task: Task, evaluations: int = 100) -> Attribution:
    """What each event is worth to a linear predictor of f under uniformly random removals.

    LASSO chooses the events (penalty by five-fold cross-validation), least squares on those gives
    the weights, so that they are not shrunk; with fewer distinct sets than events the LASSO's own
    weights stay. Events not chosen get exactly 0.

    Args:
        task: What to explain.
        evaluations: Random sets to ask, all different; all 2^E where there are no more.

    Raises:
        ExplanationError: Fewer than 10 evaluations, too few for a cross-validation.
    """
    check_budget(task, "sparse_surrogate", evaluations)
    masks = []
    for row, players in enumerate(task.sizes):
        check_evaluations(task, row, "sparse_surrogate", evaluations, min(2 * FOLDS, 1 << players))
        masks.append(random_coalitions(generator(task, row), players, evaluations))
    values = task.values(masks)
    base, full = task.values.ends()
    return Attribution(
        scores=[sparse_weights(m, v) for m, v in zip(masks, values, strict=True)],
        prompt=np.zeros(len(masks)),
        base=base,
        full=full,
        evaluations=task.values.evaluations.copy(),
    )


def sparse_weights(masks: BoolArray, values: FloatArray) -> FloatArray:
    """(n,) weights of the sparse linear model of values (M,) of distinct coalitions (M, n)."""
    weights = np.zeros(masks.shape[1])
    if np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()):
        return weights
    features = masks - 0.5
    if len(masks) >= 2 * FOLDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of penalties that do not win
            weights = LassoCV(cv=FOLDS, max_iter=5000).fit(features, values).coef_.copy()
    else:
        weights[:] = 1.0  # too few sets to choose by: all of them, at most three events
    chosen = np.abs(weights) > NEGLIGIBLE * np.abs(weights).max()
    weights[~chosen] = 0.0
    if 0 < chosen.sum() < len(masks):
        line = np.column_stack([np.ones(len(masks)), features[:, chosen]])
        weights[chosen] = np.linalg.lstsq(line, values, rcond=None)[0][1:]
    weights[np.abs(weights) <= NEGLIGIBLE * np.abs(weights).max()] = 0.0
    return weights


EACH = 4
"""Passes for every player: with as many, a history is explained event by event."""


@register(
    name="coarse_to_fine",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="at most `evaluations` (200), a third of them on blocks",
    estimates="the Shapley value, whole blocks of events being one player where little happens",
    equation="as shapley, over the events of the blocks that matter and each other block whole",
    paper="blocks as players: Owen 1977, doi:10.1007/978-3-642-45494-3_7; coarse first: "
    "AttriBoT, Liu et al. 2024, arXiv:2411.15102",
    caution="Events of a closed block share its score equally: only their sum was measured, and "
    "two strong events that cancel each other keep a block closed.",
)
def coarse_to_fine(
    task: Task, evaluations: int = 200, blocks: int = 12, share: float = 0.9
) -> Attribution:
    """Shapley values of histories too long to ask about every event.

    A history with four evaluations for every event is explained as by `shapley`. In a longer one,
    first blocks of consecutive events are the players. The fewest blocks that carry ``share`` of
    the summed absolute scores are opened, strongest first, as far as four evaluations for every player
    last. Then the events of the opened blocks and each closed block, whole, are the players.

    Nothing is dropped: scores add up to ``f(all) - f(none)``. The score of a closed block, and its
    standard error, are divided equally among its events.

    Args:
        task: What to explain.
        evaluations: Most model evaluations a history.
        blocks: Blocks of the first step, of nearly equal size, at least 2.
        share: Share of the blocks' absolute scores to open, above 0 and up to 1.

    Raises:
        ExplanationError: An option is out of range, or the evaluations do not suffice for the blocks.
    """
    check_budget(task, "coarse_to_fine", evaluations)
    _check_options(blocks, share)
    sizes = task.sizes
    long = [
        row
        for row, size in enumerate(sizes)
        if EACH * size > evaluations and 1 << size > evaluations
    ]
    for row in long:
        check_evaluations(task, row, "coarse_to_fine", evaluations, 3 * (2 * blocks + 2))
    groups: dict[int, IntArray] = {
        row: np.arange(size) * blocks // max(size, blocks) if row in long else np.arange(size)
        for row, size in enumerate(sizes)
    }
    coarse = _explain(task, {row: groups[row] for row in long}, evaluations // 3)
    room = (evaluations - evaluations // 3) // EACH
    for row in long:
        groups[row] = _opened(groups[row], coarse[row].scores, share, room)
    short = {row: group for row, group in groups.items() if row not in long}
    fine = _explain(task, short, evaluations)
    fine |= _explain(task, {row: groups[row] for row in long}, evaluations - evaluations // 3)
    return finish(task, [_divide(fine[row], groups[row]) for row in range(len(sizes))])


def _explain(task: Task, groups: dict[int, IntArray], evaluations: int) -> dict[int, Estimate]:
    """Shapley values of groups of players: by row, the (n,) group of every player."""
    rows = list(groups)

    def values(masks: Sequence[BoolArray]) -> list[FloatArray]:
        asked = [np.empty((0, size), dtype=bool) for size in task.sizes]
        for row, mask in zip(rows, masks, strict=True):
            asked[row] = mask[:, groups[row]]
        answers = task.values(asked)
        return [answers[row] for row in rows]

    draws = [generator(task, row) for row in rows]
    sizes = [int(groups[row][-1]) + 1 for row in rows]
    return dict(zip(rows, sample_shapley(draws, values, sizes, Budget(evaluations)), strict=True))


def _opened(group: IntArray, scores: FloatArray, share: float, room: int) -> IntArray:
    """The grouping with the strongest blocks opened, ``room`` players at most."""
    lengths, strength = np.bincount(group), np.abs(scores)
    order = np.argsort(-strength, kind="stable")
    before = strength[order].cumsum() - strength[order]
    wanted = before < share * strength.sum()
    players = len(lengths) + (lengths[order] - 1).cumsum()
    opened = np.zeros(len(lengths), dtype=bool)
    opened[order] = wanted & (players <= room)
    new = np.append(True, (np.diff(group) > 0) | opened[group[1:]])
    found: IntArray = new.cumsum() - 1
    return found


def _divide(found: Estimate, group: IntArray) -> Estimate:
    """Scores of players from those of groups, divided equally."""
    lengths = np.bincount(group)
    return Estimate((found.scores / lengths)[group], (found.standard_errors / lengths)[group])


def _check_options(blocks: int, share: float) -> None:
    for name, value, right, expected in (
        ("blocks", blocks, isinstance(blocks, int) and blocks >= 2, "a whole number of 2 or more"),
        ("share", share, 0 < share <= 1, "above 0 and at most 1"),
    ):
        if not right:
            raise ExplanationError(
                f"{name} is {value!r}",
                where="method 'coarse_to_fine'",
                expected=expected,
                fix="leave it out for the default",
            )
