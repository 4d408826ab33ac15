"""Methods that follow the target's gradient with respect to the input vectors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ExplanationError, choices
from llm_influence.rendering.pieces import UnitPieces
from llm_influence.rendering.template import FIELDS

Baseline = Literal["mean", "zero"]


@register(
    name="input_x_gradient",
    family="gradient",
    units="target",
    removals=(),
    cost="1 forward and 1 backward pass, and 1 forward for the baseline",
    estimates="the first-order change of f from a zero input to this one",
    equation="a_i = sum over the tokens t of i of x_t . df/dx_t",
    paper="Shrikumar et al. 2016, arXiv:1605.01713",
    caution="Exact for linear models alone; saturated inputs get little. Refused on ModernBERT.",
)
def input_x_gradient(task: Task) -> Attribution:
    """``score = sum over the event's tokens of input . gradient``, signs kept."""
    _check_length_counts(task, "input_x_gradient")
    inputs = _inputs(task)
    values, gradients = _value_and_gradient(task, inputs)
    scores, frame = task.batch.event_sums((inputs * gradients).sum(-1) * task.batch.attention_mask)
    base = _value(task, torch.zeros_like(inputs))
    return _attribution(task, scores, frame, base, values, passes=3)


@register(
    name="integrated_gradients",
    family="gradient",
    units="target",
    removals=(),
    cost="`steps` forward and backward passes, and 2 forward passes",
    estimates="the path integral of the gradient from a baseline to the input",
    equation="a_i = sum over tokens t of i: (x_t - x'_t) . integral, s in [0, 1], of "
    "df/dx_t at x' + s (x - x')",
    paper="Sundararajan et al. 2017, arXiv:1703.01365",
    caution="Look at the completeness gap: above a few percent, raise `steps`.",
)
def integrated_gradients(
    task: Task, *, steps: int = 32, baseline: Baseline = "mean"
) -> Attribution:
    """``score = sum over tokens of (x - x') . integral of gradient at x' + t (x - x')``.

    Event tokens move from the baseline to their own vectors, frame tokens stay what they are, so
    the base value is the model's answer to a history of neutral events. The integral is taken by
    Gauss-Legendre quadrature.

    Args:
        task: What is explained.
        steps: Points of the quadrature.
        baseline: ``mean``: each token becomes the average vector of its field; ``zero``: nothing.
    """
    if steps < 1:
        raise ExplanationError(
            f"steps is {steps}",
            where="integrated_gradients",
            expected="at least 1",
            fix="ask for more steps",
        )
    inputs = _inputs(task)
    start = _baseline(task, inputs, baseline)
    total = torch.zeros_like(inputs)
    points, weights = np.polynomial.legendre.leggauss(steps)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        _, gradients = _value_and_gradient(task, start + float(point) * (inputs - start))
        total += float(weight) * gradients
    token_scores = ((inputs - start) * total).sum(-1) * task.batch.attention_mask
    scores, frame = task.batch.event_sums(token_scores)
    base, full = _value(task, start), _value(task, inputs)
    return _attribution(task, scores, frame, base, full, passes=2 * steps + 2)


def _check_length_counts(task: Task, what: str) -> None:
    """Refuse to follow a vector to zero where the model sees its direction alone."""
    if task.model.backbone.loses_length:
        raise ExplanationError(
            f"{task.model.backbone.model.config.model_type} normalises its input vectors first",
            where=what,
            expected="a backbone that feels the length of an input vector",
            fix="use integrated_gradients with baseline 'mean', or a perturbation method",
        )


def _inputs(task: Task) -> Tensor:
    """(N, T, H) input vectors, cut from the graph."""
    with torch.no_grad():
        return task.model.embed(task.batch).detach()


def _baseline(task: Task, inputs: Tensor, kind: Baseline) -> Tensor:
    in_event = (task.batch.event_index >= 0)[..., None]
    if kind == "zero":
        _check_length_counts(task, "integrated_gradients, baseline 'zero'")
        return torch.where(in_event, torch.zeros_like(inputs), inputs)
    if kind != "mean":
        raise ExplanationError(
            f"unknown baseline {kind!r}",
            where="integrated_gradients",
            expected=choices(["mean", "zero"], kind),
            fix="choose one of them",
        )
    means = _mean_vectors(task)[task.batch.field_index]
    return torch.where(in_event, means, inputs)


@torch.no_grad()
def _mean_vectors(task: Task) -> Tensor:
    """(fields + 1, H) average input vector of each field; the last row is that of all of them."""
    pieces = task.model.encoder.pieces
    if not isinstance(pieces, UnitPieces):
        words = task.model.body.get_input_embeddings().weight
        return words.mean(dim=0).expand(len(FIELDS) + 1, -1)
    vectors = task.model.units(slice(None))
    field = torch.from_numpy(pieces.fields).to(vectors.device)
    rows = [vectors[field == number] for number in range(len(FIELDS))]
    means = [row.mean(dim=0) if len(row) else vectors.mean(dim=0) for row in rows]
    return torch.stack([*means, vectors.mean(dim=0)])


def _value_and_gradient(task: Task, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) target and (N, T, H) its gradient; rows do not touch each other."""
    vectors = vectors.detach().requires_grad_()
    with torch.enable_grad():
        prediction = task.model(task.batch, vectors)
        values = task.target.values(prediction, torch.arange(len(vectors)))
        (gradients,) = torch.autograd.grad(values.sum(), vectors)
    return values.detach(), gradients


@torch.no_grad()
def _value(task: Task, vectors: Tensor) -> Tensor:
    return task.target.values(task.model(task.batch, vectors), torch.arange(len(vectors)))


def _attribution(
    task: Task, scores: Tensor, frame: Tensor, base: Tensor, full: Tensor, *, passes: int
) -> Attribution:
    return Attribution(
        scores=task.split(scores.cpu().double().numpy()),
        frame=frame.cpu().double().numpy(),
        base=base.cpu().double().numpy(),
        full=full.cpu().double().numpy(),
        passes=np.full(len(task.histories), passes, dtype=np.int64),
    )
