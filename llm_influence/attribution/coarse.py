"""Coarse to fine: long histories by blocks first, then the events of the blocks that matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_influence.attribution.coalition_process import Estimate
from llm_influence.attribution.draws import generator
from llm_influence.attribution.registry import register
from llm_influence.attribution.shapley import check_budget, check_passes, finish
from llm_influence.attribution.shapley_sampling import Budget, sample_shapley
from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ExplanationError
from llm_influence.types import BoolArray, FloatArray, IntArray

EACH = 4
"""Passes for every player: with as many, a history is explained event by event."""


@register(
    name="coarse_to_fine",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="at most `passes` (200), a third of them on blocks",
    estimates="the Shapley value, whole blocks of events being one player where little happens",
    equation="as shapley, over the events of the blocks that matter and each other block whole",
    paper="blocks as players: Owen 1977, doi:10.1007/978-3-642-45494-3_7; coarse first: "
    "AttriBoT, Liu et al. 2024, arXiv:2411.15102",
    caution="Events of a closed block share its score equally: only their sum was measured, and "
    "two strong events that cancel each other keep a block closed.",
)
def coarse_to_fine(
    task: Task, passes: int = 200, blocks: int = 12, share: float = 0.9
) -> Attribution:
    """Shapley values of histories too long to ask about every event.

    A history with four passes for every event is explained as by `shapley`. In a longer one,
    first blocks of consecutive events are the players. The fewest blocks that carry ``share`` of
    the summed absolute scores are opened, strongest first, as far as four passes for every player
    last. Then the events of the opened blocks and each closed block, whole, are the players.

    Nothing is dropped: scores add up to ``f(all) - f(none)``. The score of a closed block, and its
    standard error, are divided equally among its events.

    Args:
        task: What to explain.
        passes: Most forward passes a history.
        blocks: Blocks of the first step, of nearly equal size, at least 2.
        share: Share of the blocks' absolute scores to open, above 0 and up to 1.

    Raises:
        ExplanationError: An option is out of range, or the passes do not suffice for the blocks.
    """
    check_budget(task, "coarse_to_fine", passes)
    _check_options(blocks, share)
    sizes = task.sizes
    long = [row for row, size in enumerate(sizes) if EACH * size > passes and 1 << size > passes]
    for row in long:
        check_passes(task, row, "coarse_to_fine", passes, 3 * (2 * blocks + 2))
    groups: dict[int, IntArray] = {
        row: np.arange(size) * blocks // max(size, blocks) if row in long else np.arange(size)
        for row, size in enumerate(sizes)
    }
    coarse = _explain(task, {row: groups[row] for row in long}, passes // 3)
    room = (passes - passes // 3) // EACH
    for row in long:
        groups[row] = _opened(groups[row], coarse[row].scores, share, room)
    short = {row: group for row, group in groups.items() if row not in long}
    fine = _explain(task, short, passes)
    fine |= _explain(task, {row: groups[row] for row in long}, passes - passes // 3)
    return finish(task, [_divide(fine[row], groups[row]) for row in range(len(sizes))])


def _explain(task: Task, groups: dict[int, IntArray], passes: int) -> dict[int, Estimate]:
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
    return dict(zip(rows, sample_shapley(draws, values, sizes, Budget(passes)), strict=True))


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
