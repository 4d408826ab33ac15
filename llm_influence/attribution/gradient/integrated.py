"""Integrated gradients, to a completeness that is asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.gradient.baseline import Baseline, starting_vectors
from llm_influence.attribution.gradient.parts import moved_parts, player_scores, times
from llm_influence.attribution.gradient.path import Surface
from llm_influence.attribution.gradient.simpson import FIRST, Path
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ExplanationError
from llm_influence.types import FloatArray


@register(
    name="integrated_gradients",
    family="gradient",
    units="target",
    removals=(),
    cost="2 passes a point: as many points as the completeness tolerance takes (about 9 at 0.01 on "
    "a fine-tuned MiniLM), or `steps` points and 2 forward passes",
    estimates="the path integral of the gradient from a baseline to the input",
    equation="a_i = sum over tokens t of i: (x_t - x'_t) . integral, s in [0, 1], of "
    "df/dx_t at x' + s (x - x')",
    paper="Sundararajan et al. 2017, arXiv:1703.01365",
    caution="Inputs between baseline and history are none that the model was trained on. A row "
    "that did not converge says so: raise `max_steps`.",
    players=("events", "fields"),
    to_zero={"baseline": "zero"},
)
def integrated_gradients(
    task: Task,
    *,
    tolerance: float = 0.01,
    max_steps: int = 65,
    steps: int | None = None,
    baseline: Baseline = "mean",
) -> Attribution:
    """``score = sum over tokens of (x - x') . integral of gradient at x' + s (x - x')``.

    Event tokens move from the baseline to their own vectors, frame tokens stay what they are, so
    the base value is the model's answer to a history of neutral events.

    The integral is taken by an adaptive Simpson rule (`simpson`) that starts with 5 points and
    halves intervals, for each history alone, until the errors of all intervals, taken as positive,
    add up to at most ``tolerance`` of ``f(x) - f(x')``. Errors of one sign cannot hide those of
    the other. Only histories that are not done are computed again.

    Args:
        task: What is explained.
        tolerance: Largest completeness gap.
        max_steps: Most points a history; one that needs more is reported as not converged.
        steps: Instead of all that, this many points of Gauss-Legendre quadrature for every
            history.
        baseline: ``mean``: each token becomes the average vector of its field; ``zero``: nothing.

    Raises:
        ExplanationError: An option has no sense.
    """
    _check(tolerance, max_steps, steps)
    surface = Surface(task)
    start = starting_vectors(task, surface.inputs, baseline, "integrated_gradients")
    moved = moved_parts(task, surface.inputs - start)
    if steps is not None:
        scores, base, full = gauss_legendre(surface, start, moved, steps)
    else:
        scores, base, full = adaptive(surface, start, moved, tolerance, max_steps)
    players, frame = player_scores(task, scores)
    change, found = full - base, np.array([row.sum() for row in players]) + frame
    return Attribution(
        scores=players,
        frame=frame,
        base=base,
        full=full,
        passes=surface.passes,
        converged=np.abs(found - change) <= tolerance * np.abs(change),
    )


def adaptive(
    surface: Surface, start: Tensor, moved: Tensor, tolerance: float, most: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Integrals of ``moved`` (N, T, C, H) times the gradient by the adaptive rule, and both ends.

    Returns:
        (N, T, C) integrals, (N,) values at ``start``, (N,) values at the inputs.
    """
    paths = [Path() for _ in surface.task.histories]
    while any(path.wanted for path in paths):
        rows = np.array([row for row, path in enumerate(paths) for _ in path.wanted])
        points = [point for path in paths for point in path.wanted]
        values, scores = _at(surface, start, moved, rows, np.array(points))
        for row, point, value, score in zip(rows, points, values, scores, strict=True):
            paths[row].values[point], paths[row].scores[point] = float(value), score
        for path in paths:
            if path.wanted:
                path.refine(tolerance, most - len(path.values))
    return (
        np.stack([path.integral() for path in paths]),
        np.array([path.values[0.0] for path in paths]),
        np.array([path.values[1.0] for path in paths]),
    )


def gauss_legendre(
    surface: Surface, start: Tensor, moved: Tensor, steps: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The same as `adaptive` with ``steps`` points of Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    every, total = np.arange(len(surface.task.histories)), np.zeros(tuple(moved.shape[:3]))
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        _, scores = _at(surface, start, moved, every, np.full(len(every), point))
        total += weight * scores
    base = surface.values(every, start.__getitem__)
    return total, base, surface.values(every, surface.inputs.__getitem__)


def _at(
    surface: Surface, start: Tensor, moved: Tensor, rows: np.ndarray, points: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(M,) values and (M, T, C) movement times gradient at points of the straight paths."""
    history = torch.from_numpy(rows).to(start.device)
    places = torch.from_numpy(points).to(start)

    def make(chosen: Tensor) -> Tensor:
        row, place = history[chosen], places[chosen][:, None, None]
        return start[row] + place * (surface.inputs[row] - start[row])

    return surface.gradients(
        rows, make, lambda chosen, gradients: times(moved, history[chosen], gradients)
    )


def _check(tolerance: float, max_steps: int, steps: int | None) -> None:
    few = len(FIRST)
    for name, given, least in (
        ("steps", steps, 1),
        ("max_steps", max_steps, few),
        ("tolerance", tolerance, 1e-6),
    ):
        if given is not None and not given >= least:
            raise ExplanationError(
                f"{name} is {given}",
                where="integrated_gradients",
                expected=f"at least {least}",
                fix="ask for more",
            )
