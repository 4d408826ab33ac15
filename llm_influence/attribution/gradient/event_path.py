"""Integrated gradients along a path on which one event enters after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.gradient.baseline import Baseline, starting_vectors
from llm_influence.attribution.gradient.path import Surface
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ExplanationError, choices
from llm_influence.types import FloatArray

Order = Literal["both", "oldest_first", "newest_first"]
ORDERS: tuple[Order, ...] = ("both", "oldest_first", "newest_first")


@register(
    name="event_path_integrated_gradients",
    family="gradient",
    units="target",
    removals=(),
    cost="2 E forward passes (E + 1 for one order), no backward pass",
    estimates="the path integral of the gradient from a baseline to the input, one event at a time",
    equation="a_i = integral, s in [0, 1], of (x_i - x'_i) . df/dx_i at (x_1, ..., x_(i-1), "
    "x'_i + s (x_i - x'_i), x'_(i+1), ..., x'_E) = f(x_1..i, x' after) - f(x_1..(i-1), x' after); "
    "the same from the newest event on; the mean of both",
    paper="Sundararajan et al. 2017, arXiv:1703.01365 (path methods); Enguehard 2023, "
    "arXiv:2305.15853 (one element moves at a time)",
    caution="Depends on the order: an event that repeats another gets what is left of it. The "
    "baseline is a history of neutral events, not one without events.",
    to_zero={"baseline": "zero"},
)
def event_path_integrated_gradients(
    task: Task, *, order: Order = "both", baseline: Baseline = "mean"
) -> Attribution:
    """What the target gains as each event moves from the baseline to its own vectors.

    Along each piece of the path one event moves alone, so the integral of its gradient is the
    difference of the target at the ends of the piece: it is computed exactly and without a
    gradient. Scores telescope: they add up to ``f(x) - f(x')`` but for rounding.

    Args:
        task: What is explained.
        order: Who enters first; ``both`` takes the mean of the two orders.
        baseline: ``mean``: each token becomes the average vector of its field; ``zero``: nothing.

    Raises:
        ExplanationError: An option has no sense.
    """
    if order not in ORDERS:
        raise ExplanationError(
            f"unknown order {order!r}",
            where="event_path_integrated_gradients",
            expected=choices(ORDERS, order),
            fix="choose one of them",
        )
    surface = Surface(task)
    start = starting_vectors(task, surface.inputs, baseline, "event_path_integrated_gradients")
    wanted = [_chains(size, order) for size in task.sizes]
    values = _values(surface, start, [sorted(set().union(*chains)) for chains in wanted])
    scores = [
        np.mean([_gains(chain, found) for chain in chains], axis=0)
        for chains, found in zip(wanted, values, strict=True)
    ]
    return Attribution(
        scores=scores,
        frame=np.zeros(len(scores)),
        base=np.array([found[0, 0] for found in values]),
        full=np.array([found[0, size] for found, size in zip(values, task.sizes, strict=True)]),
        passes=surface.passes,
    )


def _chains(size: int, order: Order) -> list[list[tuple[int, int]]]:
    """The events that are in (first, one past the last) as one after the other enters."""
    oldest = [(0, count) for count in range(size + 1)]
    newest = [(0, 0), *((first, size) for first in range(size - 1, -1, -1))]
    return {"both": [oldest, newest], "oldest_first": [oldest], "newest_first": [newest]}[order]


def _gains(chain: Sequence[tuple[int, int]], values: dict[tuple[int, int], float]) -> FloatArray:
    """(E,) what each event added when it entered, in the order of the history."""
    gains = np.diff([values[inside] for inside in chain])
    return gains if chain[1] == (0, 1) else gains[::-1]


def _values(
    surface: Surface, start: Tensor, wanted: list[list[tuple[int, int]]]
) -> list[dict[tuple[int, int], float]]:
    """The target with the events of each range at their own vectors, all others at ``start``."""
    rows = np.array([row for row, ranges in enumerate(wanted) for _ in ranges])
    history = torch.from_numpy(rows).to(start.device)
    inside = torch.tensor([each for ranges in wanted for each in ranges]).to(start.device)
    event = surface.task.batch.event_index

    def make(chosen: Tensor) -> Tensor:
        row, (first, stop) = history[chosen], inside[chosen].T[..., None]
        entered = (event[row] >= first) & (event[row] < stop)
        return torch.where(entered[..., None], surface.inputs[row], start[row])

    found = iter(surface.values(rows, make).tolist())
    return [{each: next(found) for each in ranges} for ranges in wanted]
