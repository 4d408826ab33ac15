"""Integrated gradients: with a chosen completeness, event by event, and over random baselines.

The integral is taken by an adaptive Simpson rule that knows its error: the integral of the target's
derivative over an interval is the difference of the target at its ends, and the target is known
wherever its derivative was computed. Only intervals with a large error are halved, and all points
are used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.gradients import (
    PathMethod,
    SampledGradients,
    Start,
    Surface,
    means,
    moved_parts,
    player_scores,
    starting_vectors,
    times,
)
from llm_influence.attribution.registry import Attribution, Task, register
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.template import FIELDS
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.types import FloatArray

Order = Literal["both", "oldest_first", "newest_first"]
FIRST = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points of the first two intervals."""


@dataclass(slots=True)
class SimpsonPath:
    """One history's path from its baseline (0) to its input (1).

    Attributes:
        values: The function by point; points are sums of powers of two, so they are exact.
        scores: The integrand by point: arrays whose sum is the function's derivative.
        missing: Points to be computed next.
    """

    values: dict[float, float] = field(default_factory=dict)
    scores: dict[float, FloatArray] = field(default_factory=dict)
    missing: list[float] = field(default_factory=lambda: list(FIRST))
    _intervals: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.5), (0.5, 1.0)])

    def refine(self, tolerance: float, room: int) -> None:
        """Choose the missing points, if any, once all earlier ones are known.

        The errors of all intervals, taken as positive, must add up to at most ``tolerance`` times
        the whole difference. The worst intervals are halved until the other errors meet that.

        Args:
            tolerance: Share of the whole difference.
            room: Most points that may still be computed.
        """
        self.missing = []
        errors = np.abs([self._error(a, b) for a, b in self._intervals])
        allowed = tolerance * abs(self.values[1.0] - self.values[0.0])
        for number in np.argsort(-errors, kind="stable"):
            if errors.sum() <= allowed or room < 2:
                break
            room, errors[number] = room - 2, 0.0
            low, high = self._intervals[number]
            middle = (low + high) / 2
            self._intervals[number] = (low, middle)
            self._intervals.append((middle, high))
            self.missing += [(low + middle) / 2, (middle + high) / 2]

    def integral(self) -> FloatArray:
        """The integral of the scores, by Simpson's rule on every interval."""
        return np.sum([self._simpson(self.scores, a, b) for a, b in self._intervals], axis=0)

    def _error(self, low: float, high: float) -> float:
        integral = self._simpson(self.scores, low, high).sum()
        return float(integral - (self.values[high] - self.values[low]))

    @staticmethod
    def _simpson(of: dict[float, FloatArray], low: float, high: float) -> FloatArray:
        middle = (low + high) / 2
        return (of[low] + 4 * of[middle] + of[high]) * ((high - low) / 6)


@register
@dataclass(frozen=True)
class IntegratedGradients(PathMethod):
    """``score = sum over tokens of (x - x') . integral of gradient at x' + s (x - x')``.

    Event tokens move from the baseline to their own vectors and prompt tokens stay, so the base
    value is the model's answer to a history of neutral events.

    An adaptive Simpson rule starts with 5 points for each history. It halves intervals until the
    errors of all intervals, taken as positive, add up to at most ``tolerance`` of ``f(x) - f(x')``.
    Errors of opposite signs cannot cancel. Only histories that are not done are computed again.

    Args:
        tolerance: Largest completeness gap, at least 1e-6.
        max_steps: Most points for a history, at least 5; with more, it counts as not converged.
        steps: Instead of the adaptive rule, this many points of Gauss-Legendre quadrature for every
            history.
        baseline: ``mean``: each token becomes the average vector of its field; ``zero``: zeros.

    Raises:
        ExplanationError: An option is out of range.
    """

    name = "integrated_gradients"
    cost = (
        "2 evaluations a point: as many points as the completeness tolerance takes (about 9 at "
        "0.01 on a fine-tuned MiniLM), or `steps` points and 2 model evaluations"
    )
    estimates = "the path integral of the gradient from a baseline to the input"
    equation = (
        "a_i = sum over tokens t of i: (x_t - x'_t) . integral, s in [0, 1], of "
        "df/dx_t at x' + s (x - x')"
    )
    paper = "Sundararajan et al. 2017, arXiv:1703.01365"
    caution = (
        "The model was not trained on inputs between baseline and history. A row that did not "
        "converge says so: raise `max_steps`."
    )
    players = ("events", "fields")

    tolerance: float = 0.01
    max_steps: int = 65
    steps: int | None = None
    baseline: Start = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and not self.steps >= 1:
            raise self.option_error("steps", "at least 1")
        if not self.max_steps >= len(FIRST):
            raise self.option_error("max_steps", f"at least {len(FIRST)}")
        if not self.tolerance >= 1e-6:
            raise self.option_error("tolerance", "at least 1e-06")

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        surface = Surface(task)
        start = starting_vectors(task, surface.inputs, self.baseline)
        moved = moved_parts(task, surface.inputs - start)
        if self.steps is not None:
            scores, base, full = gauss_legendre(surface, start, moved, self.steps)
        else:
            scores, base, full = adaptive(surface, start, moved, self.tolerance, self.max_steps)
        players, prompt = player_scores(task, scores)
        change, total = full - base, np.array([row.sum() for row in players]) + prompt
        return Attribution(
            scores=players,
            prompt=prompt,
            base=base,
            full=full,
            evaluations=surface.evaluations,
            converged=np.abs(total - change) <= self.tolerance * np.abs(change),
        )


def adaptive(
    surface: Surface, start: Tensor, moved: Tensor, tolerance: float, most: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Integrals of ``moved`` (N, T, C, H) times the gradient by the adaptive rule, and both ends.

    Returns:
        (N, T, C) integrals, (N,) values at ``start``, (N,) values at the inputs.
    """
    paths = [SimpsonPath() for _ in surface.task.histories]
    while any(path.missing for path in paths):
        rows = np.array([row for row, path in enumerate(paths) for _ in path.missing])
        points = [point for path in paths for point in path.missing]
        values, scores = _at(surface, start, moved, rows, np.array(points))
        for row, point, value, score in zip(rows, points, values, scores, strict=True):
            paths[row].values[point], paths[row].scores[point] = float(value), score
        for path in paths:
            if path.missing:
                path.refine(tolerance, most - len(path.values))
    return (
        np.stack([path.integral() for path in paths]),
        np.array([path.values[0.0] for path in paths]),
        np.array([path.values[1.0] for path in paths]),
    )


def gauss_legendre(
    surface: Surface, start: Tensor, moved: Tensor, steps: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`adaptive` with ``steps`` points of Gauss-Legendre quadrature instead."""
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


@register
@dataclass(frozen=True)
class EventPathIntegratedGradients(PathMethod):
    """What the target gains as each event moves from the baseline to its own vectors.

    Along each piece of the path one event moves alone, so the integral of its gradient is the
    difference of the target at the ends of the piece: it is exact and needs no gradient. Scores add
    up to ``f(x) - f(x')`` but for rounding.

    Args:
        order: Which event moves first; ``both`` takes the mean of the two orders.
        baseline: ``mean``: each token becomes the average vector of its field; ``zero``: zeros.

    Raises:
        ExplanationError: Unknown order or baseline.
    """

    name = "event_path_integrated_gradients"
    cost = "2 E model evaluations (E + 1 for one order), no backward pass"
    estimates = (
        "the path integral of the gradient from a baseline to the input, one event at a time"
    )
    equation = (
        "a_i = integral, s in [0, 1], of (x_i - x'_i) . df/dx_i at (x_1, ..., x_(i-1), "
        "x'_i + s (x_i - x'_i), x'_(i+1), ..., x'_E) = f(x_1..i, x' after) - f(x_1..(i-1), x' "
        "after); the same from the newest event on; the mean of both"
    )
    paper = (
        "Sundararajan et al. 2017, arXiv:1703.01365 (path methods); Enguehard 2023, "
        "arXiv:2305.15853 (one element moves at a time)"
    )
    caution = (
        "Depends on the order: an event that repeats another gets what is left of it. The "
        "baseline is a history of neutral events, not one without events."
    )

    order: Order = "both"
    baseline: Start = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in get_args(Order):
            raise self.option_error("order", "'both', 'oldest_first' or 'newest_first'")

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        surface, sizes = Surface(task), task.sizes
        start = starting_vectors(task, surface.inputs, self.baseline)
        chains = [_chains(size, self.order) for size in sizes]
        values = _values(surface, start, [sorted(set().union(*of_row)) for of_row in chains])
        scores = [
            np.mean([_gains(chain, known) for chain in of_row], axis=0)
            for of_row, known in zip(chains, values, strict=True)
        ]
        return Attribution(
            scores=scores,
            prompt=np.zeros(len(scores)),
            base=np.array([known[0, 0] for known in values]),
            full=np.array([known[0, size] for known, size in zip(values, sizes, strict=True)]),
            evaluations=surface.evaluations,
        )


def _chains(size: int, order: Order) -> list[list[tuple[int, int]]]:
    """Ranges of events at their own vectors (first, one past the last), along each path."""
    oldest = [(0, count) for count in range(size + 1)]
    newest = [(0, 0), *((first, size) for first in range(size - 1, -1, -1))]
    return {"both": [oldest, newest], "oldest_first": [oldest], "newest_first": [newest]}[order]


def _gains(chain: Sequence[tuple[int, int]], values: dict[tuple[int, int], float]) -> FloatArray:
    """(E,) gains of the target as each event moves, in the order of the history."""
    gains = np.diff([values[inside] for inside in chain])
    return gains if chain[1] == (0, 1) else gains[::-1]


def _values(
    surface: Surface, start: Tensor, ranges: list[list[tuple[int, int]]]
) -> list[dict[tuple[int, int], float]]:
    """The target with the events of each range at their own vectors, all others at ``start``."""
    rows = np.array([row for row, of_row in enumerate(ranges) for _ in of_row])
    history = torch.from_numpy(rows).to(start.device)
    inside = torch.tensor([pair for of_row in ranges for pair in of_row]).to(start.device)
    event = surface.task.batch.event_index

    def make(chosen: Tensor) -> Tensor:
        row, (first, stop) = history[chosen], inside[chosen].T[..., None]
        moved = (event[row] >= first) & (event[row] < stop)
        return torch.where(moved[..., None], surface.inputs[row], start[row])

    values = iter(surface.values(rows, make).tolist())
    return [{pair: next(values) for pair in of_row} for of_row in ranges]


@register
@dataclass(frozen=True)
class ExpectedGradients(SampledGradients):
    """Integrated gradients averaged over random baselines, one point of each path.

    A draw replaces each event token by another of the same field, and likewise what the template
    adds to it; all are equally likely (style ``text``: all tokens of the vocabulary). The prompt
    stays. Points of the paths are stratified: each of ``samples`` equal parts of [0, 1] gets one.
    The base value is the mean value of the drawn baselines.

    Args:
        samples: Draws, seeded by user; at least 2. The standard errors are those of independent
            draws; with stratified points the true ones are no larger on average.

    Raises:
        ExplanationError: Fewer than two samples.
    """

    name = "expected_gradients"
    cost = "`samples` forward and backward evaluations, as many model evaluations, and 1"
    estimates = (
        "the path integral of the gradient from a random other history to this one, averaged"
    )
    equation = (
        "a_i = mean over draws of x' and s in [0, 1] of sum over tokens t of i: "
        "(x_t - x'_t) . df/dx_t at x' + s (x - x')"
    )
    paper = "Erion et al. 2021, arXiv:1906.10670"
    caution = "Noisy: look at the standard errors. Complete in expectation, not in every answer."

    samples: int = 32

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        surface, every = Surface(task), np.arange(len(task.histories))
        draws = task.generators()
        strata = np.stack([draw.permutation(self.samples) for draw in draws])
        samples, bases = [], []
        for number in range(self.samples):
            start, added = _random_baselines(surface, draws)
            place = (strata[:, number] + np.array([draw.random() for draw in draws])) / self.samples
            moved = surface.inputs - start
            between = start + torch.from_numpy(place)[:, None, None].to(start) * moved
            read = partial(times, moved_parts(task, moved, added))
            samples.append(surface.gradients(every, between.__getitem__, read)[1])
            bases.append(surface.values(every, start.__getitem__))
        scores, prompt, errors = means(task, samples)
        return Attribution(
            scores=scores,
            prompt=prompt,
            base=np.mean(bases, axis=0),
            full=surface.values(every, surface.inputs.__getitem__),
            evaluations=surface.evaluations,
            standard_errors=errors,
        )


@torch.no_grad()
def _random_baselines(surface: Surface, draws: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """(N, T, H) vectors with random tokens in events, and (N, T, A) the random ids added there."""
    model, batch = surface.task.model, surface.task.batch
    ids, added = batch.input_ids.cpu().numpy().copy(), batch.added_ids.cpu().numpy().copy()
    fields, events = batch.field_index.cpu().numpy(), batch.event_index.cpu().numpy()
    columns = list(enumerate(model.encoder.template.added))
    for row, (draw, length) in enumerate(zip(draws, surface.lengths, strict=True)):
        places = np.flatnonzero(events[row, :length] >= 0)
        ids[row, places] = [_random_id(draw, model, field) for field in fields[row, places]]
        for column, name in columns:
            there = places[added[row, places, column] >= 0]
            added[row, there, column] = [_random_id(draw, model, FIELDS.index(name)) for _ in there]
    input_ids, added_ids = (torch.from_numpy(x).to(surface.inputs.device) for x in (ids, added))
    other = replace(batch, input_ids=input_ids, added_ids=added_ids)
    in_event = (batch.event_index >= 0)[..., None]
    return torch.where(in_event, model.embed(other), surface.inputs), other.added_ids


def _random_id(draw: np.random.Generator, model: InfluenceModel, field: int) -> int:
    """A random id of the field; style ``text``: any token of the vocabulary."""
    cache = model.encoder.token_cache
    if isinstance(cache, IdTokenCache):
        ids = cache.ids_of(FIELDS[field])
        return int(draw.integers(ids.start, ids.stop))
    return int(draw.integers(len(model.body.get_input_embeddings().weight)))
