"""Gradients of the target with respect to input vectors, and methods at the input itself.

A token of a template belongs to one event and one field. Where a template adds fields to an
event's token (template ``fused``), the token's vector is a sum of one part for each field. The
gradient with respect to each part is the gradient with respect to the token, so a field's score is
the movement of its part times that gradient. Scores of an event's fields add up to the event's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.engine import batches, mean_vectors
from llm_influence.attribution.registry import (
    Attribution,
    Method,
    Task,
    Units,
    register,
    share_attribution,
)
from llm_influence.rendering.encoder import EncodedBatch
from llm_influence.types import FloatArray, IntArray

TOKENS = 4096
"""Tokens of a batch, padding included; affects speed and memory alone. Gradients keep the results
of every layer, so a batch must be smaller than without them (`TokenBudget`)."""

Start = Literal["mean", "zero"]
"""Where a path begins, option ``baseline``: at the average vector of a token's field, or at 0."""

Make = Callable[[Tensor], Tensor]
"""From (m,) numbers of points to their (m, T, H) input vectors."""


class GradientMethod(Method):
    """A method that needs the target's gradient."""

    family = "gradient"
    units: ClassVar[Units] = "target"
    gradients = True


class PathMethod(GradientMethod):
    """A method along a path from ``baseline`` (zeros if ``zero``) to the input."""

    to_zero: ClassVar[dict[str, object]] = {"baseline": "zero"}
    baseline: Start

    def __post_init__(self) -> None:
        if self.baseline not in get_args(Start):
            raise self.option_error("baseline", "'mean' or 'zero'")


class SampledGradients(GradientMethod):
    """A method that averages ``samples`` random draws."""

    players = ("events", "fields")
    samples: int

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise self.option_error("samples", "at least 2: one draw has no standard error")


def starting_vectors(task: Task, inputs: Tensor, kind: Start) -> Tensor:
    """(N, T, H) input vectors with every event's tokens at the baseline, the prompt unchanged.

    Args:
        task: What is explained.
        inputs: (N, T, H) the histories' own vectors.
        kind: ``mean``: the average vector of a token's field, without what the template adds to
            it; ``zero``: zeros.
    """
    in_event = (task.batch.event_index >= 0)[..., None]
    if kind == "zero":
        return torch.where(in_event, torch.zeros_like(inputs), inputs)
    return torch.where(in_event, mean_vectors(task.model)[task.batch.field_index], inputs)


def moved_parts(task: Task, moved: Tensor, added_before: Tensor | None = None) -> Tensor:
    """The movement of each token in parts that belong to one player each.

    Args:
        task: What is explained.
        moved: (N, T, H) how far each token moved.
        added_before: (N, T, A) ids added to each token at the start of the path; default: none, so
            that an added part starts at zero.

    Returns:
        (N, T, C, H) parts that add up to ``moved``: the whole token, or, where fields are the
        players and the template adds some, its own part and then each added one.
    """
    added = task.batch.added_ids
    if task.players.kind == "events" or not added.shape[-1]:
        return moved[:, :, None]
    with torch.no_grad():
        parts = task.model.embeddings.learned(added[..., None])  # (N, T, A, H)
        if added_before is not None:
            parts = parts - task.model.embeddings.learned(added_before[..., None])
    own = moved - parts.sum(dim=2)
    return torch.cat([own[:, :, None], parts], dim=2)


def times(moved: Tensor, rows: Tensor, gradients: Tensor) -> Tensor:
    """(M, T, C) movement times gradient.

    Args:
        moved: (N, T, C, H) of `moved_parts`.
        rows: (M,) history of each of the gradients.
        gradients: (M, T, H).
    """
    return torch.einsum("mtch,mth->mtc", moved[rows], gradients)


def player_scores(task: Task, scores: FloatArray) -> tuple[list[FloatArray], FloatArray]:
    """N arrays (P,) of players and (N,) of prompts, summed over (N, T, C) scores of parts."""
    batch, players = task.batch.to(torch.device("cpu")), task.players
    own, added = players.owners(
        batch.event_index.numpy(), batch.field_index.numpy(), task.model.encoder
    )
    owner = np.concatenate([own[..., None], added], axis=-1)[..., : scores.shape[-1]]
    size, width = len(scores), max(task.sizes) + 1  # column 0 collects the prompt
    places = np.arange(size)[:, None, None] * width + owner + 1
    totals = np.bincount(places.ravel(), scores.ravel(), size * width)
    sums: FloatArray = totals.astype(np.float64).reshape(size, width)
    return task.split(sums[:, 1:]), sums[:, 0]


class Surface:
    """The target as a function of the input vectors of N histories.

    Points may belong to any of the histories. They are sorted by length and computed in batches
    under a token budget; their vectors are made when their batch is computed.

    Attributes:
        inputs: (N, T, H) the histories' own vectors, detached.
        evaluations: (N,) evaluations so far; a backward pass counts as one more.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.evaluations: IntArray = np.zeros(len(task.histories), dtype=np.int64)
        with torch.no_grad():
            self.inputs = task.model.embed(task.batch).detach()

    @cached_property
    def _items(self) -> Tensor:
        """(I, H) item vectors, computed once: they lie on no path."""
        with torch.no_grad():
            return self.task.model.item_vectors()

    @cached_property
    def lengths(self) -> IntArray:
        """(N,) tokens of each history."""
        return self.task.batch.last().cpu().numpy() + 1

    def values(self, rows: IntArray, make: Make) -> FloatArray:
        """(M,) values of the target at M points.

        Args:
            rows: (M,) the history that each point belongs to.
            make: Input vectors of points.
        """
        values = np.zeros(len(rows))
        for chosen, batch in self._batches(rows):
            with torch.no_grad():
                vectors = make(chosen)[:, : batch.input_ids.shape[1]]
                targets = self._target(batch, vectors, rows[chosen.numpy()])
            values[chosen.numpy()] = targets.cpu().double().numpy()
        np.add.at(self.evaluations, rows, 1)
        return values

    def values_at_zero(self) -> FloatArray:
        """(N,) values of the target where all input vectors are 0."""
        every = np.arange(len(self.inputs))
        return self.values(every, lambda chosen: torch.zeros_like(self.inputs[chosen]))

    def gradients(
        self, rows: IntArray, make: Make, read: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[FloatArray, FloatArray]:
        """Values at M points, and a function of the gradients there.

        Args:
            rows: (M,) the history that each point belongs to.
            make: Input vectors of points.
            read: The function: from (m,) numbers of points and (m, T, H) gradients, zero at
                padding, to (m, ...).

        Returns:
            (M,), and (M, ...).
        """
        values, kept, order = np.zeros(len(rows)), [], []
        for chosen, batch in self._batches(rows):
            longest = batch.input_ids.shape[1]
            vectors = make(chosen)[:, :longest].detach().requires_grad_()
            with torch.enable_grad():
                targets = self._target(batch, vectors, rows[chosen.numpy()])
                (gradients,) = torch.autograd.grad(targets.sum(), vectors)
            values[chosen.numpy()] = targets.detach().cpu().double().numpy()
            whole = self.inputs.new_zeros(len(chosen), *self.inputs.shape[1:])
            whole[:, :longest] = gradients * batch.attention_mask[..., None]
            kept.append(read(chosen, whole).cpu().double().numpy())
            order.append(chosen.numpy())
        np.add.at(self.evaluations, rows, 2)
        return values, np.concatenate(kept)[np.argsort(np.concatenate(order))]

    def _target(self, batch: EncodedBatch, vectors: Tensor, rows: IntArray) -> Tensor:
        model = self.task.model
        prediction = model.heads(model.query(batch, vectors), self._items)
        return self.task.target.values(prediction, torch.from_numpy(rows))

    def _batches(self, rows: IntArray) -> Iterator[tuple[Tensor, EncodedBatch]]:
        """Numbers of points with their batch, longest histories first."""
        device = self.task.batch.input_ids.device
        for chosen in batches(self.lengths[rows], TOKENS):
            numbers = torch.from_numpy(rows[chosen]).to(device)
            yield torch.from_numpy(chosen), self.task.batch.take(numbers)


def means(
    task: Task, samples: Sequence[FloatArray]
) -> tuple[list[FloatArray], FloatArray, list[FloatArray]]:
    """Scores of N histories from two or more samples of (N, T, C) scores of parts.

    Returns:
        N arrays (P,) of means, (N,) means of the prompt, N arrays (P,) of their standard errors
        (standard deviation of the samples over the root of their number).
    """
    summed = [player_scores(task, scores) for scores in samples]
    rows = [np.stack(scores) for scores in zip(*(players for players, _ in summed), strict=True)]
    return (
        [row.mean(axis=0) for row in rows],
        np.mean([prompt for _, prompt in summed], axis=0),
        [row.std(axis=0, ddof=1) / len(row) ** 0.5 for row in rows],
    )


@register
@dataclass(frozen=True)
class Saliency(GradientMethod):
    """Shares of the lengths (L2) of the gradient at the event's tokens."""

    name = "saliency"
    units = "share"
    cost = "1 forward and 1 backward pass, and 2 model evaluations for the completeness gap"
    estimates = "how strongly f reacts to a small change of the event's vectors, in any direction"
    equation = (
        "a_i = sum over the tokens t of i of the length of df/dx_t, divided by that of all tokens"
    )
    paper = "Simonyan et al. 2014, arXiv:1312.6034"
    caution = "Never negative: it measures sensitivity, not whether the event supports the target."

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        surface, rows = Surface(task), np.arange(len(task.histories))
        _, lengths = surface.gradients(
            rows, surface.inputs.__getitem__, lambda _, g: g.norm(dim=-1, keepdim=True)
        )
        return share_attribution(task, *player_scores(task, lengths), surface.evaluations)


@register
@dataclass(frozen=True)
class InputXGradient(GradientMethod):
    """``score = sum over the event's tokens of input . gradient``, with signs."""

    name = "input_x_gradient"
    cost = "1 forward and 1 backward pass, and 1 forward pass for the baseline"
    estimates = "the first-order change of f from a zero input to this one"
    equation = "a_i = sum over the tokens t of i of x_t . df/dx_t"
    paper = "Shrikumar et al. 2016, arXiv:1605.01713"
    caution = (
        "Exact for linear models alone. Where the prediction is nearly certain it can order events "
        "worse than chance."
    )
    players = ("events", "fields")
    to_zero: ClassVar[dict[str, object]] = {}

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        surface, rows = Surface(task), np.arange(len(task.histories))
        read = partial(times, moved_parts(task, surface.inputs))
        full, scores = surface.gradients(rows, surface.inputs.__getitem__, read)
        players, prompt = player_scores(task, scores)
        return Attribution(players, prompt, surface.values_at_zero(), full, surface.evaluations)


@register
@dataclass(frozen=True)
class SmoothGrad(SampledGradients):
    """``score = sum over tokens of input . mean gradient at noisy inputs``, with standard errors.

    Args:
        samples: Draws of noise, seeded by user; at least 2.
        noise: Length of the noise at a token, as a share of the length of the token's own vector.

    Raises:
        ExplanationError: Fewer than two samples.
    """

    name = "smoothgrad"
    cost = "`samples` forward and backward evaluations, and 2 model evaluations"
    estimates = "input x gradient, the gradient averaged over inputs nearby"
    equation = (
        "a_i = sum over tokens t of i of x_t . mean over draws of df/dx_t at x + e, "
        "e_t normal with standard deviation noise . |x_t| / sqrt(H)"
    )
    paper = "Smilkov et al. 2017, arXiv:1706.03825"
    caution = "Still first order: averaging removes the gradient's noise, not its saturation."
    to_zero: ClassVar[dict[str, object]] = {}

    samples: int = 16
    noise: float = 0.1

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        surface, every = Surface(task), np.arange(len(task.histories))
        read = partial(times, moved_parts(task, surface.inputs))
        lengths = surface.inputs.norm(dim=-1, keepdim=True)
        scale = self.noise * lengths / surface.inputs.shape[-1] ** 0.5
        draws, samples = task.generators(), []
        for _ in range(self.samples):
            noisy = surface.inputs + scale * _normal(surface, draws)
            samples.append(surface.gradients(every, noisy.__getitem__, read)[1])
        scores, prompt, errors = means(task, samples)
        base, full = surface.values_at_zero(), surface.values(every, surface.inputs.__getitem__)
        return Attribution(scores, prompt, base, full, surface.evaluations, standard_errors=errors)


def _normal(surface: Surface, draws: list[np.random.Generator]) -> Tensor:
    """(N, T, H) normal numbers, each history's from its own generator; 0 at padding."""
    noise = np.zeros(surface.inputs.shape, dtype=np.float32)
    for row, (draw, length) in enumerate(zip(draws, surface.lengths, strict=True)):
        noise[row, :length] = draw.standard_normal((length, noise.shape[-1]), dtype=np.float32)
    return torch.from_numpy(noise).to(surface.inputs)
