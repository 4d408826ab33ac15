"""Methods that remove events and compare: leave-one-out, a sparse surrogate, coarse to fine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV

from llm_influence.attribution.group_shapley import divide
from llm_influence.attribution.registry import (
    Attribution,
    Games,
    Perturbation,
    register,
    removal_attribution,
)
from llm_influence.attribution.shapley import Budget, Sampling, estimated, sample_shapley
from llm_influence.attribution.shapley_process import Estimate
from llm_influence.numerics import random_coalitions
from llm_influence.types import BoolArray, FloatArray, IntArray

FOLDS = 5
NEGLIGIBLE = 1e-6
"""Weights below this share of the largest are set to 0."""
PER_PLAYER = 4
"""Model evaluations that coarse to fine needs for each player."""


@register
@dataclass(frozen=True)
class LeaveOneOut(Perturbation):
    """What the target loses when one event alone is removed.

    ``score_i = f(E) - f(E without i)``. Scores need not add up to ``f(E) - f(none)``.
    """

    name = "leave_one_out"
    cost = "E + 2 model evaluations"
    estimates = "f(all events) - f(all but this one)"
    equation = "a_i = f(E) - f(E without i)"
    paper = "Li et al. 2016, arXiv:1612.08220"
    caution = "Events with the same information hide each other: without one, the other is left."

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        values = task.values([_all_but_each(size) for size in task.sizes])
        return removal_attribution(task, [value[1] - value[2:] for value in values])


def _all_but_each(size: int) -> BoolArray:
    """(E + 2, E): no event, all events, and all but each."""
    none, everything = np.zeros((1, size), dtype=bool), np.ones((1, size), dtype=bool)
    return np.concatenate([none, everything, ~np.eye(size, dtype=bool)])


@register
@dataclass(frozen=True)
class SparseSurrogate(Sampling):
    """Weights of a sparse linear model of f under uniformly random removals.

    LASSO chooses the events, its penalty by five-fold cross-validation. Least squares on the chosen
    events gives the weights, so that they are not shrunk. With fewer distinct sets than events the
    LASSO's own weights stay. Events that are not chosen get exactly 0.

    Args:
        evaluations: Random sets to evaluate, all different; all 2^E where there are no more.

    Raises:
        ExplanationError: When it runs: fewer than 10 evaluations, too few for a cross-validation.
    """

    name = "sparse_surrogate"
    cost = "`evaluations` (100) + 2; 2^E where that is less"
    estimates = (
        "weights of the sparse linear model that best predicts f when each event is kept or "
        "removed by the toss of a coin"
    )
    equation = "a minimises mean over random S of (f(S) - b - sum of a over S)^2 + penalty |a|"
    paper = "ContextCite: Cohen-Wang et al. 2024, arXiv:2409.00729; LASSO: Tibshirani 1996"
    caution = (
        "Not a Shapley value. It describes histories with half of their events, where each event "
        "weighs more than in the whole one, and it does not add up to f(all) - f(none)."
    )

    evaluations: int = 100

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        masks = []
        for row, (players, draw) in enumerate(zip(task.sizes, task.generators(), strict=True)):
            self.check_budget(task, row, min(2 * FOLDS, 1 << players))
            masks.append(random_coalitions(draw, players, self.evaluations))
        pairs = zip(masks, task.values(masks), strict=True)
        return removal_attribution(task, [sparse_weights(*pair) for pair in pairs])


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
        weights[:] = 1.0  # at most three events: too few sets to choose from, so all are kept
    chosen = np.abs(weights) > NEGLIGIBLE * np.abs(weights).max()
    weights[~chosen] = 0.0
    if 0 < chosen.sum() < len(masks):
        line = np.column_stack([np.ones(len(masks)), features[:, chosen]])
        weights[chosen] = np.linalg.lstsq(line, values, rcond=None)[0][1:]
    weights[np.abs(weights) <= NEGLIGIBLE * np.abs(weights).max()] = 0.0
    return weights


@register
@dataclass(frozen=True)
class CoarseToFine(Sampling):
    """Shapley values of long histories: first of blocks, then of the events in important blocks.

    A history with four evaluations for every event is explained as by `Shapley`. In a longer one,
    blocks of consecutive events are first the players. The fewest blocks that carry ``share`` of
    the summed absolute scores are opened, strongest first, while there are four evaluations for
    every player. Then the events of the opened blocks, and each closed block as a whole, are the
    players.

    All events keep a score: scores add up to ``f(all) - f(none)``. The score of a closed block, and
    its standard error, are divided equally among its events.

    Args:
        evaluations: Most model evaluations for a history.
        blocks: Blocks of the first step, of nearly equal size, at least 2.
        share: Share of the blocks' absolute scores to open, above 0 and up to 1.

    Raises:
        ExplanationError: An option is out of range; when it runs: too few evaluations for the
            blocks.
    """

    name = "coarse_to_fine"
    cost = "at most `evaluations` (200), a third of them on blocks"
    estimates = "the Shapley value; blocks of events with little influence are one player"
    equation = "as shapley, over the events of the blocks that matter and each other block whole"
    paper = (
        "blocks as players: Owen 1977, doi:10.1007/978-3-642-45494-3_7; coarse first: "
        "AttriBoT, Liu et al. 2024, arXiv:2411.15102"
    )
    caution = (
        "Events of a closed block share its score equally: only their sum was measured. Two strong "
        "events that cancel each other keep a block closed."
    )

    evaluations: int = 200
    blocks: int = 12
    share: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.blocks, int) or self.blocks < 2:
            raise self.option_error("blocks", "a whole number of 2 or more")
        if not 0 < self.share <= 1:
            raise self.option_error("share", "a number above 0 and at most 1")

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        sizes, most = task.sizes, self.evaluations
        long = [
            row for row, size in enumerate(sizes) if PER_PLAYER * size > most and 1 << size > most
        ]
        for row in long:
            self.check_budget(task, row, 3 * (2 * self.blocks + 2))
        groups: list[IntArray] = [np.arange(size) for size in sizes]
        for row in long:
            groups[row] = groups[row] * self.blocks // max(sizes[row], self.blocks)
        coarse = _grouped_shapley(task, groups, long, most // 3)
        room = (most - most // 3) // PER_PLAYER
        for row in long:
            groups[row] = _opened(groups[row], coarse[row].scores, self.share, room)
        short = [row for row in range(len(sizes)) if row not in long]
        fine = _grouped_shapley(task, groups, short, most)
        fine |= _grouped_shapley(task, groups, long, most - most // 3)
        return estimated(task, [divide(fine[row], group) for row, group in enumerate(groups)])


def _grouped_shapley(
    games: Games, groups: Sequence[IntArray], rows: Sequence[int], evaluations: int
) -> dict[int, Estimate]:
    """Shapley values of groups of players, by row; ``groups`` holds each player's group."""

    def values(masks: Sequence[BoolArray]) -> list[FloatArray]:
        requests = [np.empty((0, size), dtype=bool) for size in games.sizes]
        for row, mask in zip(rows, masks, strict=True):
            requests[row] = mask[:, groups[row]]
        answers = games.values(requests)
        return [answers[row] for row in rows]

    generators = games.generators()
    draws = [generators[row] for row in rows]
    sizes = [int(groups[row][-1]) + 1 for row in rows]
    return dict(zip(rows, sample_shapley(draws, values, sizes, Budget(evaluations)), strict=True))


def _opened(group: IntArray, scores: FloatArray, share: float, room: int) -> IntArray:
    """The grouping with the strongest blocks opened, ``room`` players at most."""
    lengths, strength = np.bincount(group), np.abs(scores)
    order = np.argsort(-strength, kind="stable")
    before = strength[order].cumsum() - strength[order]
    needed = before < share * strength.sum()
    players = len(lengths) + (lengths[order] - 1).cumsum()
    opened = np.zeros(len(lengths), dtype=bool)
    opened[order] = needed & (players <= room)
    starts = np.append(True, (np.diff(group) > 0) | opened[group[1:]])
    numbers: IntArray = starts.cumsum() - 1
    return numbers
