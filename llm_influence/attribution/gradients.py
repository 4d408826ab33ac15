"""Where a path to the input begins.

What of the input vectors moved, and whose scores it belongs to.

A token of a template belongs to one event and one field. Where a template adds fields to an
event's token (template ``fused``), the token's vector is a sum of one part a field. The target is
then a function of the parts through their sum, so its gradient with respect to each part is the
gradient with respect to the token, and what belongs to a field is that part's own movement times
it. Parts add up to tokens, tokens to events: the scores of an event's fields add up to the score
of the event.

Values and gradients of the target at any input vectors.

Means of random draws, with the error that they leave.

Gradients at the input itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.engine import batches, mean_vectors
from llm_influence.attribution.registry import Attribution, Task, generators, register
from llm_influence.errors import ExplanationError, choices
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import FloatArray, IntArray

Baseline = Literal["mean", "zero"]


def starting_vectors(task: Task, inputs: Tensor, kind: Baseline, method: str) -> Tensor:
    """(N, T, H) input vectors with every event's tokens at the baseline, the prompt as it is.

    Args:
        task: What is explained.
        inputs: (N, T, H) the histories' own vectors.
        kind: ``mean``: each token becomes the average vector of its field, without what the
            template adds to it; ``zero``: nothing.
        method: Who asks, for the message.

    Raises:
        ExplanationError: No such baseline.
    """
    in_event = (task.batch.event_index >= 0)[..., None]
    if kind == "zero":
        return torch.where(in_event, torch.zeros_like(inputs), inputs)
    if kind != "mean":
        raise ExplanationError(
            f"unknown baseline {kind!r}",
            where=method,
            expected=choices(["mean", "zero"], kind),
            fix="choose one of them",
        )
    means = mean_vectors(task.model)[task.batch.field_index]
    return torch.where(in_event, means, inputs)


def moved_parts(task: Task, moved: Tensor, added_before: Tensor | None = None) -> Tensor:
    """The movement of each token in parts that belong to one player each.

    Args:
        task: What is explained.
        moved: (N, T, H) how far each token moved.
        added_before: (N, T, A) units that were added to each token where the path began; default:
            none, so that an added part moves from nothing to what it is.

    Returns:
        (N, T, C, H) parts that add up to ``moved``: the whole token, or, where fields are the
        players and the template adds some, its own part and then each added one.
    """
    added = task.batch.added_ids
    if task.players.kind == "events" or not added.shape[-1]:
        return moved[:, :, None]
    with torch.no_grad():
        each = task.model.units.learned(added[..., None])  # (N, T, A, H)
        if added_before is not None:
            each = each - task.model.units.learned(added_before[..., None])
    own = moved - each.sum(dim=2)
    return torch.cat([own[:, :, None], each], dim=2)


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
    found = np.bincount(places.ravel(), scores.ravel(), size * width)
    sums: FloatArray = found.astype(np.float64).reshape(size, width)
    return task.split(sums[:, 1:]), sums[:, 0]


TOKENS = 4096
"""Tokens of a batch, padding included; affects speed and memory alone. Gradients keep what every
layer computed, so what fits without them (`TokenBudget`) may not fit here."""

Make = Callable[[Tensor], Tensor]
"""From (m,) numbers of wanted points to their (m, T, H) input vectors."""


class Surface:
    """The target as a function of the input vectors of N histories.

    Points are wanted for any of the histories, any number of times. They are sorted by length and
    run in batches under a token budget; their vectors are made when their batch runs.

    Attributes:
        inputs: (N, T, H) the histories' own vectors, cut from the graph.
        evaluations: (N,) evaluations so far; a backward pass counts as one more.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.evaluations: IntArray = np.zeros(len(task.histories), dtype=np.int64)
        with torch.no_grad():
            self.inputs = task.model.embed(task.batch).detach()

    @cached_property
    def _items(self) -> Tensor:
        """(I, H) item vectors, made once: they are no part of any path."""
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
        found = np.zeros(len(rows))
        for chosen, batch in self._batches(rows):
            with torch.no_grad():
                vectors = make(chosen)[:, : batch.input_ids.shape[1]]
                found[chosen.numpy()] = (
                    self._target(batch, vectors, rows[chosen.numpy()]).cpu().double().numpy()
                )
        np.add.at(self.evaluations, rows, 1)
        return found

    def gradients(
        self, rows: IntArray, make: Make, read: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[FloatArray, FloatArray]:
        """Values at M points, and what ``read`` makes of the gradients there.

        Args:
            rows: (M,) the history that each point belongs to.
            make: Input vectors of points.
            read: From (m,) numbers of points and (m, T, H) gradients, zero at padding, to (m, ...)
                numbers to be kept.

        Returns:
            (M,), and (M, ...).
        """
        values, kept = np.zeros(len(rows)), []
        order = []
        for chosen, batch in self._batches(rows):
            longest = batch.input_ids.shape[1]
            vectors = make(chosen)[:, :longest].detach().requires_grad_()
            with torch.enable_grad():
                found = self._target(batch, vectors, rows[chosen.numpy()])
                (gradients,) = torch.autograd.grad(found.sum(), vectors)
            values[chosen.numpy()] = found.detach().cpu().double().numpy()
            whole = self.inputs.new_zeros(len(chosen), *self.inputs.shape[1:])
            whole[:, :longest] = gradients * batch.attention_mask[..., None]
            kept.append(read(chosen, whole).cpu().double().numpy())
            order.append(chosen.numpy())
        np.add.at(self.evaluations, rows, 2)
        return values, np.concatenate(kept)[np.argsort(np.concatenate(order))]

    def _target(self, batch: EncodedBatch, vectors: Tensor, rows: IntArray) -> Tensor:
        model = self.task.model
        states = model.query(batch, vectors)
        prediction = model.heads(states, self._items)
        return self.task.target.values(prediction, torch.from_numpy(rows))

    def _batches(self, rows: IntArray) -> Iterator[tuple[Tensor, EncodedBatch]]:
        """Numbers of points and the batch that they belong to, longest histories first."""
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
    found = [player_scores(task, scores) for scores in samples]
    rows = [np.stack(each) for each in zip(*(players for players, _ in found), strict=True)]
    return (
        [row.mean(axis=0) for row in rows],
        np.mean([prompt for _, prompt in found], axis=0),
        [row.std(axis=0, ddof=1) / len(row) ** 0.5 for row in rows],
    )


def check_samples(method: str, samples: int) -> None:
    """Refuse fewer draws than an error can be told from.

    Raises:
        ExplanationError: Fewer than two.
    """
    if samples < 2:
        raise ExplanationError(
            f"samples is {samples}",
            where=method,
            expected="at least 2: one draw has no standard error",
            fix="ask for more samples",
        )


@register(
    name="saliency",
    family="gradient",
    units="share",
    removals=(),
    cost="1 forward and 1 backward pass, and 2 model evaluations for the completeness gap",
    estimates="how strongly f reacts to a small change of the event's vectors, in any direction",
    equation="a_i = sum over the tokens t of i of the length of df/dx_t, divided by that of all "
    "tokens",
    paper="Simonyan et al. 2014, arXiv:1312.6034",
    caution="Never negative, and nothing of the event itself: sensitivity, no support.",
)
def saliency(task: Task) -> Attribution:
    """Shares of the lengths (L2) of the gradient at the event's tokens."""
    surface, rows = Surface(task), np.arange(len(task.histories))
    _, lengths = surface.gradients(
        rows, surface.inputs.__getitem__, lambda _, g: g.norm(dim=-1, keepdim=True)
    )
    events, prompt = player_scores(task, lengths)
    totals = np.array([row.sum() for row in events]) + prompt
    totals[totals == 0] = 1.0
    base, full = task.values.ends()
    return Attribution(
        scores=[row / total for row, total in zip(events, totals, strict=True)],
        prompt=prompt / totals,
        base=base,
        full=full,
        evaluations=task.values.evaluations + surface.evaluations,
    )


@register(
    name="input_x_gradient",
    family="gradient",
    units="target",
    removals=(),
    cost="1 forward and 1 backward pass, and 1 forward for the baseline",
    estimates="the first-order change of f from a zero input to this one",
    equation="a_i = sum over the tokens t of i of x_t . df/dx_t",
    paper="Shrikumar et al. 2016, arXiv:1605.01713",
    caution="Exact for linear models alone; where the prediction is sure it can order events worse "
    "than chance.",
    players=("events", "fields"),
    to_zero={},
)
def input_x_gradient(task: Task) -> Attribution:
    """``score = sum over the event's tokens of input . gradient``, signs kept."""
    surface, rows = Surface(task), np.arange(len(task.histories))
    read = partial(times, moved_parts(task, surface.inputs))
    full, scores = surface.gradients(rows, surface.inputs.__getitem__, read)
    players, prompt = player_scores(task, scores)
    base = surface.values(rows, lambda chosen: torch.zeros_like(surface.inputs[chosen]))
    return Attribution(players, prompt, base, full, surface.evaluations)


@register(
    name="smoothgrad",
    family="gradient",
    units="target",
    removals=(),
    cost="`samples` forward and backward evaluations, and 2 model evaluations",
    estimates="input x gradient, the gradient averaged over inputs nearby",
    equation="a_i = sum over tokens t of i of x_t . mean over draws of df/dx_t at x + e, "
    "e_t normal with standard deviation noise . |x_t| / sqrt(H)",
    paper="Smilkov et al. 2017, arXiv:1706.03825",
    caution="Still first order: the noise takes the gradient's jitter away, not its saturation.",
    players=("events", "fields"),
    to_zero={},
)
def smoothgrad(task: Task, *, samples: int = 16, noise: float = 0.1) -> Attribution:
    """``score = sum over tokens of input . mean gradient at noisy inputs``, with its error.

    Args:
        task: What is explained.
        samples: Draws of noise, seeded by user.
        noise: Length of the noise at a token, as a part of the token's own vector.

    Raises:
        ExplanationError: An option has no sense.
    """
    check_samples("smoothgrad", samples)
    surface = Surface(task)
    every, read = np.arange(len(task.histories)), partial(times, moved_parts(task, surface.inputs))
    width = surface.inputs.shape[-1]
    scale = noise * surface.inputs.norm(dim=-1, keepdim=True) / width**0.5
    draws, found = generators(task), []
    for _ in range(samples):
        noisy = surface.inputs + scale * _normal(surface, draws)
        found.append(surface.gradients(every, noisy.__getitem__, read)[1])
    scores, prompt, errors = means(task, found)
    base = surface.values(every, lambda chosen: torch.zeros_like(surface.inputs[chosen]))
    full = surface.values(every, surface.inputs.__getitem__)
    return Attribution(scores, prompt, base, full, surface.evaluations, standard_errors=errors)


def _normal(surface: Surface, draws: list[np.random.Generator]) -> Tensor:
    """(N, T, H) normal numbers, each history's from its own generator; 0 at padding."""
    noise = np.zeros(surface.inputs.shape, dtype=np.float32)
    for row, (draw, length) in enumerate(zip(draws, surface.lengths, strict=True)):
        noise[row, :length] = draw.standard_normal((length, noise.shape[-1]), dtype=np.float32)
    return torch.from_numpy(noise).to(surface.inputs)
