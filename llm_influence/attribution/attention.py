"""Methods that read attention weights: last layer, rollout, flow, and weights times gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from llm_influence.attribution.registry import (
    Attribution,
    Method,
    Task,
    register,
    share_attribution,
)
from llm_influence.errors import ModelError
from llm_influence.modeling.adapters import Body
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch
from llm_influence.types import FloatArray, IntArray

WEIGHTS = 2**25
"""Attention weights held at a time; affects speed and memory alone."""
UNIT = 2**24
"""A weight of 1 as a whole number: maximum flow is exact in these (scipy takes int32)."""

Read = Callable[[EncodedBatch, Tensor], tuple[Tensor, Tensor]]
"""From a batch of B histories and their (B,) numbers within the task to (B, E) values of events, 0
beyond a history's events, and (B,) values of the prompt."""


class AttentionShares(Method):
    """Relevances of tokens that are never negative, as shares of their total."""

    family = "attention"
    units = "share"
    cost = "1 model evaluation with attention weights, and 2 for the completeness gap"
    read_evaluations: ClassVar[int] = 1

    @abstractmethod
    def read(self, task: Task, batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Relevances of events and prompt, as in `Read`."""

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        events, prompt = event_values(task, partial(self.read, task))
        return share_attribution(task, events, prompt, self.read_evaluations)


def event_values(task: Task, read: Read) -> tuple[list[FloatArray], FloatArray]:
    """N arrays (E,) of events and (N,) of prompts from ``read``, a few histories at a time."""
    config, tokens = task.model.backbone.model.config, task.batch.input_ids.shape[1]
    held = config.num_hidden_layers * config.num_attention_heads * tokens**2
    scores: list[FloatArray] = []
    prompts: list[FloatArray] = []
    for rows in torch.arange(len(task.histories)).split(max(1, WEIGHTS // held)):
        events, prompt = read(task.batch.take(rows.to(task.model.device)), rows)
        lines = events.double().cpu().numpy()
        scores += [line[: task.sizes[row]] for row, line in zip(rows.tolist(), lines, strict=True)]
        prompts.append(prompt.double().cpu().numpy())
    return scores, np.concatenate(prompts)


def at_query(batch: EncodedBatch, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """(B, E) and (B,) sums over the tokens of each event and of the prompt, at the query.

    Args:
        batch: B histories.
        relevance: (B, T, T) how relevant each token (last axis) is to each other.
    """
    rows = torch.arange(len(relevance), device=relevance.device)
    return batch.event_sums(relevance[rows, batch.last()] * batch.attention_mask)


def attention_weights(model: InfluenceModel, batch: EncodedBatch) -> tuple[Tensor, ...]:
    """Attention weights of every layer, (B, heads, T, T), without gradients.

    Raises:
        ModelError: The backbone gives none.
    """
    with torch.no_grad(), eager_attention(model.body):
        layers = model.attend(batch, model.embed(batch), output_attentions=True).attentions
    return checked(model, layers)


def checked(model: InfluenceModel, layers: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """``layers`` if they are the weights of every layer.

    Raises:
        ModelError: It does not.
    """
    expected = model.backbone.model.config.num_hidden_layers
    if layers is None or len(layers) != expected or any(layer is None for layer in layers):
        raise ModelError(
            "the backbone returned no attention weights",
            where=f"{model.backbone.source!r} ({model.backbone.model.config.model_type})",
            expected=f"weights of {expected} layers",
            fix="use a gradient or perturbation method with this backbone",
        )
    return layers


@contextmanager
def eager_attention(body: Body) -> Iterator[None]:
    """Use attention that returns its weights, which fused kernels do not; restored afterwards."""
    before = body.config._attn_implementation
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(before)


@register
@dataclass(frozen=True)
class AttentionLast(AttentionShares):
    """Attention weights of the last layer, averaged over heads, at the last token.

    Shares of events and prompt add up to 1.
    """

    name = "attention_last"
    estimates = "how much the query attends to the event's tokens in the last layer"
    equation = "a_i = sum over tokens t of i of mean over heads of A_L[query, t]"
    paper = "Jain & Wallace 2019, arXiv:1902.10186 (on why it is no explanation)"
    caution = "In the last layer the state at an event's token is already a mixture of many events."

    def read(self, task: Task, batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionShares.read`."""
        return at_query(batch, attention_weights(task.model, batch)[-1].mean(dim=1))


@register
@dataclass(frozen=True)
class AttentionRollout(AttentionShares):
    """Product over layers of ``(A + I) / 2``, averaged over heads, read at the last token.

    Shares of events and prompt add up to 1.
    """

    name = "attention_rollout"
    estimates = "how much attention flows from an event to the prediction, through all layers"
    equation = "R_l = (mean over heads of A_l + I) / 2 . R_(l-1); a_i = last row, tokens of i"
    paper = "Abnar & Zuidema 2020, arXiv:2005.00928"
    caution = "Never negative, and it ignores what attention carries: no evidence of support."

    def read(self, task: Task, batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionShares.read`."""
        layers = attention_weights(task.model, batch)
        return at_query(batch, rolled_out([weights.mean(dim=1) for weights in layers]))


def rolled_out(layers: Sequence[Tensor]) -> Tensor:
    """(B, T, T) how much of each token's final state comes from each input token.

    Args:
        layers: (B, T, T) of each layer, how much each token takes from each other; rows add up
            to 1. Half of a state is counted as passed by, half as taken.
    """
    identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
    flow = identity.expand(len(layers[0]), -1, -1)
    for weights in layers:
        flow = (weights + identity) / 2 @ flow
    return flow


@register
@dataclass(frozen=True)
class AttentionFlow(AttentionShares):
    """Maximum flow from the query's final state down to each event's input tokens.

    Nodes are the states of every token after every layer. An edge carries at most a layer's mean
    attention (half) and its residual connection (half). An event's tokens are one sink, so that
    what they share is counted once. Capacities are rounded to multiples of 2^-24.
    """

    name = "attention_flow"
    cost = (
        "1 model evaluation with attention weights, 2 for the completeness gap, and E + 1 maximum "
        "flows in a graph of layers x T x T / 2 edges"
    )
    estimates = "the most attention that the layers could carry from the event to the prediction"
    equation = (
        "a_i = maximum flow from the query's last state to the tokens of i together, "
        "capacities (mean over heads of A_l + I) / 2; divided by the sum over events and prompt"
    )
    paper = "Abnar & Zuidema 2020, arXiv:2005.00928"
    caution = (
        "Never negative, and it ignores values; slow for long texts (for every event a flow in a "
        "graph of millions of edges)."
    )

    def read(self, task: Task, batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionShares.read`."""
        layers = [
            weights.mean(dim=1).double().cpu() for weights in attention_weights(task.model, batch)
        ]
        flows = torch.zeros(len(batch.num_events), batch.ends.shape[1], dtype=torch.float64)
        ends = zip(batch.last().tolist(), batch.num_events.tolist(), strict=True)
        for row, (last, events) in enumerate(ends):
            seen = slice(last + 1)
            owners = batch.event_index[row, seen].cpu().numpy()
            greatest = greatest_flows([a[row, seen, seen].numpy() for a in layers], owners, events)
            flows[row, : events + 1] = torch.from_numpy(greatest)
        return flows[:, 1:], flows[:, 0]


def greatest_flows(layers: Sequence[FloatArray], owners: IntArray, events: int) -> FloatArray:
    """Maximum flows from the last token's final state to the prompt and to each event.

    Args:
        layers: (T, T) mean attention of each layer, first layer first.
        owners: (T,) event of each token, -1 for the prompt.
        events: Number E of events.

    Returns:
        (E + 1,) flows, the prompt's first; 0 for a prompt without tokens.
    """
    tokens, depth = len(owners), len(layers)
    rows, columns, capacities = [], [], []
    for layer, weights in enumerate(layers):
        mixed = np.rint((weights + np.eye(tokens)) / 2 * UNIT).astype(np.int64)
        state, source = np.nonzero(mixed)
        rows.append((layer + 1) * tokens + state)
        columns.append(layer * tokens + source)
        capacities.append(mixed[state, source])
    sinks = (depth + 1) * tokens + 1 + np.arange(-1, events)
    rows.append(np.arange(tokens))
    columns.append(sinks[owners + 1])
    capacities.append(np.full(tokens, 2 * UNIT))  # more than ever leaves the query
    size = (depth + 1) * tokens + events + 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = csr_array(
        (np.concatenate(capacities).astype(np.int32), edges), shape=(size, size), dtype=np.int32
    )
    query = depth * tokens + tokens - 1
    return np.array([maximum_flow(graph, query, int(sink)).flow_value for sink in sinks]) / UNIT


@register
@dataclass(frozen=True)
class AttentionGradient(AttentionShares):
    """Relevance that attention carries to the query, where more attention would raise the target.

    The query's own residual path (the identity) is left out: it would give the last event most of
    the relevance in every history. Scores are all 0 where no attention raises the target.
    """

    name = "attention_gradient"
    gradients = True
    read_evaluations = 2
    cost = "1 forward and 1 backward pass with attention weights, and 2 for the completeness gap"
    estimates = "how much attention that raises the target comes from the event, through all layers"
    equation = (
        "R_l = R_(l-1) + P_l . R_(l-1), P_l = mean over heads of max(0, A_l * df/dA_l), "
        "R_0 = I; a_i = (R - I)[query, tokens of i] / sum over all tokens"
    )
    paper = "Chefer et al. 2021, arXiv:2103.15679"
    caution = "Opposing events get 0 instead of less; the path around the attention is not seen."

    def read(self, task: Task, batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionShares.read`."""
        layers, gradients = weights_and_gradients(task, batch, rows)
        identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
        relevance = identity.expand(len(layers[0]), -1, -1)
        for weights, gradient in zip(layers, gradients, strict=True):
            positive = (weights * gradient).clamp(min=0).mean(dim=1)
            relevance = relevance + positive @ relevance
        return at_query(batch, relevance - identity)


@register
@dataclass(frozen=True)
class AttentionXGradient(Method):
    """Attention weights times the target's gradient with respect to them, with signs.

    Summed over layers, heads and the tokens that attend; scores need not add up.
    """

    name = "attention_x_gradient"
    family = "attention"
    units = "target"
    gradients = True
    cost = "1 forward and 1 backward pass with attention weights, and 2 for the completeness gap"
    estimates = "the first-order change of f if nothing attended to the event's tokens"
    equation = (
        "a_i = sum over layers l, heads h, tokens s, tokens t of i of A_l,h[s, t] . df/dA_l,h[s, t]"
    )
    paper = "Hao et al. 2021, arXiv:2004.11207, with the gradient at the weights themselves"
    caution = (
        "First order, and weights are cut without the others growing in their place; the last "
        "event's own path around the attention is not seen."
    )

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""

        def read(batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
            pairs = zip(*weights_and_gradients(task, batch, rows), strict=True)
            received = sum((weights * gradient).sum(dim=(1, 2)) for weights, gradient in pairs)
            return batch.event_sums(received * batch.attention_mask)

        scores, prompt = event_values(task, read)
        base, full = task.values.ends()
        return Attribution(scores, prompt, base, full, task.values.evaluations + np.int64(2))


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
        values = task.target.values(model.heads(model.query(batch, states=states)), rows)
        gradients = torch.autograd.grad(values.sum(), layers)
    return tuple(layer.detach() for layer in layers), gradients
