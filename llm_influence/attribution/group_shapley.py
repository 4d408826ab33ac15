"""Shapley values of the strongest events, each alone, and of all other events as one player.

A long history has a few events that matter and many whose effects are smaller than any estimate's
error. The few are found by removing events one by one. They and the block of all other events are
the players of a small game, whose Shapley values are exact or nearly so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from llm_influence.attribution.registry import Attribution, Games, register
from llm_influence.attribution.shapley import Budget, Sampling, estimated, sample_shapley
from llm_influence.attribution.shapley_process import Estimate
from llm_influence.types import BoolArray, FloatArray, IntArray

LONG = 8
"""A history of more than so many times ``alone`` events is searched by blocks first."""


@register
@dataclass(frozen=True)
class GroupShapley(Sampling):
    """Shapley values of up to ``alone`` events, and of all other events together.

    A history of ``alone`` + 1 events or fewer has no group: every event is a player. In a longer
    one the ``alone`` events whose removal alone changes the target most are players, and all others
    are one player, the block. A very long history is searched in two steps: first by blocks of
    consecutive events, then by the events of the ``alone`` strongest blocks.

    Scores add up to ``f(all) - f(none)``. The block's score and its standard error are divided
    equally among its events, and `Influence.block` says which events these are.

    Args:
        evaluations: Most model evaluations of the small game; the search is not counted.
        alone: Most events that are players of their own.
        tolerance: Stop after a quarter, half or three quarters of the evaluations if the largest
            standard error is within this share of the largest score. 0: spend all.
            ``converged`` in the quality card says whether it was reached.

    Raises:
        ExplanationError: An option is out of range; when it runs: too few evaluations for the
            players.
    """

    name = "group_shapley"
    players: ClassVar[tuple[str, ...]] = ("events",)
    cost = "at most `evaluations` (128), and E for the search (2 sqrt(8 E) for E above 64)"
    estimates = (
        "the Shapley value of each of the strongest events, and of all others as one player, with "
        "standard errors"
    )
    equation = "as shapley, over the strongest events and one block of all others"
    paper = "groups as players: Jullum et al. 2021, arXiv:2106.12228; Owen 1977"
    caution = (
        "Only the sum of the block was measured, its events share it equally. Events that hide "
        "each other in the search stay in the block."
    )

    evaluations: int = 128
    alone: int = 8
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.alone, int) or self.alone < 1:
            raise self.option_error("alone", "a whole number of 1 or more")
        if not self.tolerance >= 0:
            raise self.option_error("tolerance", "0 or more")

    def run(self, task: Games) -> Attribution:
        """See `Method.run`."""
        groups = _grouped(task, self.alone)
        players = [int(group.max()) + 1 for group in groups]
        for row, number in enumerate(players):
            self.check_budget(task, row, min(2 * number + 2, 1 << number))

        def values(masks: Sequence[BoolArray]) -> list[FloatArray]:
            return task.values([m[:, group] for m, group in zip(masks, groups, strict=True)])

        budget = Budget(self.evaluations, self.tolerance)
        answers = sample_shapley(task.generators(), values, players, budget)
        converged = np.array([budget.met(answer) for answer in answers])
        divided = [divide(*pair) for pair in zip(answers, groups, strict=True)]
        blocks = [_block(group) for group in groups]
        return replace(estimated(task, divided, converged), blocks=blocks)


def divide(answer: Estimate, group: IntArray) -> Estimate:
    """Scores of events from those of groups, divided equally; (E,) numbers of the groups."""
    sizes = np.bincount(group)
    return Estimate((answer.scores / sizes)[group], (answer.standard_errors / sizes)[group])


def _block(group: IntArray) -> tuple[int, ...]:
    """Places of the events of the block, which is group 0 if it has several events."""
    block = np.flatnonzero(group == 0)
    return tuple(block.tolist()) if len(block) > 1 else ()


def _grouped(games: Games, alone: int) -> list[IntArray]:
    """(E,) number of the player of each event: 0 for the block, else in the order of time."""
    sizes = games.sizes
    pieces: dict[int, list[IntArray]] = {
        row: list(np.arange(n)[:, None]) for row, n in enumerate(sizes) if n > alone + 1
    }
    long: dict[int, list[IntArray]] = {
        row: np.array_split(np.arange(sizes[row]), math.ceil(math.sqrt(alone * sizes[row])))
        for row in pieces
        if sizes[row] > LONG * alone
    }
    for row, places in _strongest(games, long, alone).items():
        pieces[row] = list(places[:, None])
    chosen = _strongest(games, pieces, alone)
    groups: list[IntArray] = [np.arange(size) for size in sizes]
    for row, places in chosen.items():
        groups[row] = np.zeros(sizes[row], dtype=int)
        groups[row][places] = np.arange(1, len(places) + 1)
    return groups


def _strongest(games: Games, pieces: dict[int, list[IntArray]], number: int) -> dict[int, IntArray]:
    """Of each row, places of the pieces whose removal changes the target most, in time order."""
    requests = [np.empty((0, size), dtype=bool) for size in games.sizes]
    for row, parts in pieces.items():
        masks = np.ones((len(parts) + 1, games.sizes[row]), dtype=bool)
        for mask, part in zip(masks[1:], parts, strict=True):
            mask[part] = False
        requests[row] = masks
    values = games.values(requests)
    places = {}
    for row, parts in pieces.items():
        changes = np.abs(values[row][1:] - values[row][0])
        order = np.lexsort((-np.arange(len(parts)), -changes))  # the more recent of equal ones
        places[row] = np.sort(np.concatenate([parts[piece] for piece in order[:number]]))
    return places
