"""Attention weighted by the gradient of the target with respect to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.attention.weights import (
    at_query,
    checked,
    eager_attention,
    event_values,
    shares,
)
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.rendering.batch import EncodedBatch


@register(
    name="attention_gradient",
    family="attention",
    units="share",
    removals=(),
    gradients=True,
    cost="1 forward and 1 backward pass with attention weights, and 2 for the completeness gap",
    estimates="how much attention that raises the target comes from the event, through all layers",
    equation="R_l = R_(l-1) + P_l . R_(l-1), P_l = mean over heads of max(0, A_l * df/dA_l), "
    "R_0 = I; a_i = (R - I)[query, tokens of i] / sum over all tokens",
    paper="Chefer et al. 2021, arXiv:2103.15679",
    caution="Opposing events get nothing instead of less; what passes by attention is not seen.",
)
def attention_gradient(task: Task) -> Attribution:
    """Relevance that attention carries to the query, where more attention would raise the target.

    The query's own residual path (the identity) is left out: it would give the last event most of
    the relevance in every history. Scores are all 0 where no attention raises the target.
    """

    def read(batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        layers, gradients = weights_and_gradients(task, batch, rows)
        identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
        relevance = identity.expand(len(layers[0]), -1, -1)
        for weights, gradient in zip(layers, gradients, strict=True):
            positive = (weights * gradient).clamp(min=0).mean(dim=1)
            relevance = relevance + positive @ relevance
        return at_query(batch, relevance - identity)

    return shares(task, read, passes=2)


@register(
    name="attention_x_gradient",
    family="attention",
    units="target",
    removals=(),
    gradients=True,
    cost="1 forward and 1 backward pass with attention weights, and 2 for the completeness gap",
    estimates="the first-order change of f if nothing attended to the event's tokens",
    equation="a_i = sum over layers l, heads h, tokens s, tokens t of i of "
    "A_l,h[s, t] . df/dA_l,h[s, t]",
    paper="Hao et al. 2021, arXiv:2004.11207, with the gradient at the weights themselves",
    caution="First order, and weights are cut without the others taking their place; the last "
    "event's own path past the attention is not seen.",
)
def attention_x_gradient(task: Task) -> Attribution:
    """Attention weights times the target's gradient with respect to them, signs kept.

    Summed over layers, heads and the tokens that attend; scores do not promise to add up.
    """

    def read(batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(*weights_and_gradients(task, batch, rows), strict=True)
        received = sum((weights * gradient).sum(dim=(1, 2)) for weights, gradient in pairs)
        return batch.event_sums(received * batch.attention_mask)

    scores, frame = event_values(task, read)
    base, full = task.values.ends()
    return Attribution(scores, frame, base, full, task.values.passes + np.int64(2))


def weights_and_gradients(
    task: Task, batch: EncodedBatch, rows: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Attention weights of every layer, and the target's gradients with respect to them.

    Args:
        task: What is explained.
        batch: B histories.
        rows: (B,) their numbers within the task.

    Returns:
        (B, heads, T, T) of each layer, twice.
    """
    model = task.model
    with torch.enable_grad(), eager_attention(model.body):
        vectors = model.embed(batch).detach().requires_grad_()
        output = model.attend(batch, vectors, output_attentions=True)
        layers = checked(model, output.attentions)
        states = output.last_hidden_state[torch.arange(len(rows)), batch.last()]
        values = task.target.values(model.heads(model.query_from(states, batch)), rows)
        gradients = torch.autograd.grad(values.sum(), layers)
    return tuple(layer.detach() for layer in layers), gradients
