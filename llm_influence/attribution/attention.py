"""What the methods of this family share: the weights, and tokens' relevances as events' shares.

Attention of the last layer: where the model looked last.

Attention rollout: the product of the attention of all layers.

Attention flow: the most that can flow from an event to the prediction.

Attention weighted by the length of what it carries.

Attention weighted by the gradient of the target with respect to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

from llm_influence.attribution.registry import Attribution, Task, register
from llm_influence.errors import ExplanationError, ModelError, choices
from llm_influence.modeling.adapters import Body, LayerPlaces, layer_places
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import FloatArray, IntArray

WEIGHTS = 2**25
"""Attention weights held at a time; affects speed and memory alone."""


def event_values(
    task: Task, read: Callable[[EncodedBatch, Tensor], tuple[Tensor, Tensor]]
) -> tuple[list[FloatArray], FloatArray]:
    """What ``read`` finds in the attention of N histories, read a part of them at a time.

    Args:
        task: What is explained.
        read: From a batch of B histories and their (B,) numbers within the task to (B, E) values
            of events, 0 beyond a history's events, and (B,) values of the prompt.

    Returns:
        N arrays (E,), and (N,).
    """
    config, tokens = task.model.backbone.model.config, task.batch.input_ids.shape[1]
    held = config.num_hidden_layers * config.num_attention_heads * tokens**2
    scores: list[FloatArray] = []
    prompts: list[FloatArray] = []
    for rows in torch.arange(len(task.histories)).split(max(1, WEIGHTS // held)):
        events, prompt = read(task.batch.take(rows.to(task.model.device)), rows)
        found = events.double().cpu().numpy()
        scores += [line[: task.sizes[row]] for row, line in zip(rows.tolist(), found, strict=True)]
        prompts.append(prompt.double().cpu().numpy())
    return scores, np.concatenate(prompts)


def shares(
    task: Task,
    read: Callable[[EncodedBatch, Tensor], tuple[Tensor, Tensor]],
    *,
    evaluations: int = 1,
) -> Attribution:
    """`event_values` that are never negative, divided by their total, prompt included.

    Where nothing is relevant at all (every value 0) the scores are 0 and add up to 0.

    Args:
        task: What is explained.
        read: See `event_values`.
        evaluations: Passes that ``read`` takes; two more are for the completeness gap.
    """
    events, prompt = event_values(task, read)
    totals = np.array([row.sum() for row in events]) + prompt
    totals[totals == 0] = 1.0
    base, full = task.values.ends()
    return Attribution(
        scores=[row / total for row, total in zip(events, totals, strict=True)],
        prompt=prompt / totals,
        base=base,
        full=full,
        evaluations=task.values.evaluations + np.int64(evaluations),
    )


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
        found = model.attend(batch, model.embed(batch), output_attentions=True).attentions
    return checked(model, found)


def checked(model: InfluenceModel, found: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """``found`` if it holds the weights of every layer.

    Raises:
        ModelError: It does not.
    """
    expected = model.backbone.model.config.num_hidden_layers
    if found is None or len(found) != expected or any(layer is None for layer in found):
        raise ModelError(
            "the backbone returned no attention weights",
            where=f"{model.backbone.source!r} ({model.backbone.model.config.model_type})",
            expected=f"weights of {expected} layers",
            fix="use a gradient or perturbation method with this backbone",
        )
    return found


@contextmanager
def eager_attention(body: Body) -> Iterator[None]:
    """Attention that keeps its weights; fused kernels never make them. Restored afterwards."""
    before = body.config._attn_implementation
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(before)


@register(
    name="attention_last",
    family="attention",
    units="share",
    removals=(),
    cost="1 model evaluation with attention weights, and 2 for the completeness gap",
    estimates="how much the query attends to the event's tokens in the last layer",
    equation="a_i = sum over tokens t of i of mean over heads of A_L[query, t]",
    paper="Jain & Wallace 2019, arXiv:1902.10186 (on why it is no explanation)",
    caution="The last layer's states have long been mixed: a state at an event is not that event.",
)
def attention_last(task: Task) -> Attribution:
    """Attention weights of the last layer, averaged over heads, at the last token.

    Shares of events and prompt add up to 1.
    """

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        return at_query(batch, attention_weights(task.model, batch)[-1].mean(dim=1))

    return shares(task, read)


@register(
    name="attention_rollout",
    family="attention",
    units="share",
    removals=(),
    cost="1 model evaluation with attention weights, and 2 for the completeness gap",
    estimates="how much attention flows from an event to the prediction, through all layers",
    equation="R_l = (mean over heads of A_l + I) / 2 . R_(l-1); a_i = last row, tokens of i",
    paper="Abnar & Zuidema 2020, arXiv:2005.00928",
    caution="Never negative and blind to what is done with the attention: no evidence of support.",
)
def attention_rollout(task: Task) -> Attribution:
    """Product over layers of ``(A + I) / 2``, averaged over heads, read at the last token.

    Shares of events and prompt add up to 1.
    """

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        layers = attention_weights(task.model, batch)
        return at_query(batch, rolled_out([weights.mean(dim=1) for weights in layers]))

    return shares(task, read)


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


UNIT = 2**24
"""What a weight of 1 is in whole numbers: maximum flow is exact in these (scipy takes int32)."""


@register(
    name="attention_flow",
    family="attention",
    units="share",
    removals=(),
    cost="1 model evaluation with attention weights, 2 for the completeness gap, and E + 1 maximum "
    "flows in a graph of layers x T x T / 2 edges",
    estimates="the most attention that the layers could carry from the event to the prediction",
    equation="a_i = maximum flow from the query's last state to the tokens of i together, "
    "capacities (mean over heads of A_l + I) / 2; divided by the sum over events and prompt",
    paper="Abnar & Zuidema 2020, arXiv:2005.00928",
    caution="Never negative, blind to values; slow for long texts (a flow in a graph of millions "
    "of edges for every event).",
)
def attention_flow(task: Task) -> Attribution:
    """Maximum flow from the query's final state down to each event's input tokens.

    Nodes are the states of every token after every layer; an edge carries at most what a layer's
    mean attention (half) and its residual connection (half) let through. An event's tokens are one
    sink, so what they share is not counted twice. Capacities are rounded to multiples of 2^-24.
    """

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        layers = [
            weights.mean(dim=1).double().cpu() for weights in attention_weights(task.model, batch)
        ]
        flows = torch.zeros(len(batch.num_events), batch.ends.shape[1], dtype=torch.float64)
        for row, (last, events) in enumerate(
            zip(batch.last().tolist(), batch.num_events.tolist(), strict=True)
        ):
            seen = slice(last + 1)
            owners = batch.event_index[row, seen].cpu().numpy()
            found = greatest_flows([a[row, seen, seen].numpy() for a in layers], owners, events)
            flows[row, : events + 1] = torch.from_numpy(found)
        return flows[:, 1:], flows[:, 0]

    return shares(task, read)


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


Through = Literal["rollout", "last"]
CLOSE = 1e-3
"""How far, in parts of its largest entry, what we compute may be from what the layer computed."""
NOTHING = 1e-12
"""A sum of lengths below this is none: nothing is carried, and all shares are 0."""
_INNER = re.compile(r"\.(base_layer|lora_\w+|bottleneck)(\..*)?$")
"""What adapters put into a linear map; what stands before it is the map with its adapter."""


@register(
    name="attention_value_norm",
    family="attention",
    units="share",
    removals=(),
    cost="1 model evaluation with attention weights, and 2 for the completeness gap",
    estimates="the length of the vectors that attention moves from the event to the prediction",
    equation="N_l[s, t] = length of the sum over heads h of A_l,h[s, t] (x_t W_V,h + b_V,h) W_O,h; "
    "rows divided by their sums; 'rollout': R_l = (N_l + I) / 2 . R_(l-1), 'last': R = N_L; "
    "a_i = last row of R, tokens of i",
    paper="Kobayashi et al. 2020, arXiv:2004.10102",
    caution="Never negative: a long vector may oppose the prediction or not matter to it.",
)
def attention_value_norm(task: Task, *, through: Through = "rollout") -> Attribution:
    """Shares of the lengths of the vectors that attention carries, at the last token.

    A token that is attended to but whose value is short (a separator, the history's first token)
    gives little; attention weights alone would call it important.

    Args:
        task: What is explained.
        through: ``rollout``: through all layers; ``last``: the last layer alone.

    Raises:
        ModelError: The backbone keeps its values in another way than the families known here.
    """
    if through not in ("rollout", "last"):
        raise ExplanationError(
            f"unknown way {through!r}",
            where="attention_value_norm, through",
            expected=choices(["rollout", "last"], through),
            fix="choose one of them",
        )

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        layers = [
            norms / norms.sum(dim=-1, keepdim=True).clamp(min=NOTHING)
            for norms in value_norms(task.model, batch)
        ]
        return at_query(batch, rolled_out(layers) if through == "rollout" else layers[-1])

    return shares(task, read)


@torch.no_grad()
def value_norms(model: InfluenceModel, batch: EncodedBatch) -> list[Tensor]:
    """(B, T, T) of each layer: the length of what attention carries to each token from each.

    Raises:
        ModelError: The backbone's attention is not ``weights @ values`` of a value map, and then
            an output map.
    """
    backbone = model.backbone.model
    places = [_without_adapter_parts(place) for place in layer_places(backbone)]
    with eager_attention(model.body), _watched(backbone, places) as seen:
        found = model.attend(batch, model.embed(batch), output_attentions=True).attentions
    norms = []
    for place, weights in zip(places, checked(model, found), strict=True):
        context = seen[place.attention_output]
        values = _head_values(seen[_value_map(place)], weights, context)
        carried = (weights @ values).transpose(1, 2).reshape(context.shape)
        if (carried - context).abs().max() > CLOSE * context.abs().max():
            raise _other_attention(model, f"{place.attention_output} gets another sum of values")
        output = backbone.get_submodule(place.attention_output)
        norms.append(_carried_lengths(weights, values, _matrix(output, context.shape[-1])))
    return norms


def _carried_lengths(weights: Tensor, values: Tensor, output: Tensor) -> Tensor:
    """(B, T, T) lengths of ``sum over heads of weight . value . output``.

    The (B, T, T, H) vectors are never made: their squared lengths are sums over pairs of heads of
    products of weights and of inner products of the heads' vectors.

    Args:
        weights: (B, heads, T, T).
        values: (B, heads, T, D).
        output: (heads * D, H).
    """
    heads, size = values.shape[1], values.shape[-1]
    vectors = torch.einsum("bhtd,hdw->bthw", values, output.view(heads, size, -1))
    products = vectors @ vectors.transpose(-1, -2)  # (B, T, heads, heads)
    other = torch.einsum("bthk,bkst->bhst", products, weights)
    return (weights * other).sum(dim=1).clamp(min=0).sqrt()


def _head_values(mapped: Tensor, weights: Tensor, context: Tensor) -> Tensor:
    """(B, heads, T, D) values from what the value map gave; shared ones are repeated.

    Args:
        mapped: (B, T, any), where queries, keys and values come together the values are last.
        weights: (B, heads, T, T).
        context: (B, T, heads * D) what the values are summed to.
    """
    heads, width = weights.shape[1], context.shape[-1]
    size = width // heads
    if mapped.shape[-1] > width:
        mapped = mapped[..., -(mapped.shape[-1] // 3) :]
    values = mapped.unflatten(-1, (-1, size)).transpose(1, 2)
    return values.repeat_interleave(heads // values.shape[1], dim=1)


def _matrix(output: nn.Module, width: int) -> Tensor:
    """(width, H) matrix of a linear map with what an adapter adds to it.

    Hooks are passed by: a bottleneck after the map is not linear, so it is no part of it.
    """
    parameter = next(output.parameters())
    rows = torch.eye(width, dtype=parameter.dtype, device=parameter.device)
    return output.forward(rows) - output.forward(torch.zeros_like(rows[:1]))


def _without_adapter_parts(place: LayerPlaces) -> LayerPlaces:
    inputs = dict.fromkeys(_INNER.sub("", name) for name in place.attention_inputs)
    output = _INNER.sub("", place.attention_output)
    inputs.pop(output, None)
    return LayerPlaces(tuple(inputs), output, _INNER.sub("", place.feed_forward_output))


def _value_map(place: LayerPlaces) -> str:
    """The map that makes values: one named after them, else the only one there is."""
    own = [name for name in place.attention_inputs if name.rpartition(".")[2].startswith("v")]
    return own[0] if own else place.attention_inputs[0]


@contextmanager
def _watched(backbone: nn.Module, places: list[LayerPlaces]) -> Iterator[dict[str, Tensor]]:
    """What value maps give and what output maps are given, by full name, as the model runs."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for place in places:
        value, output = _value_map(place), place.attention_output
        hooks += [
            backbone.get_submodule(value).register_forward_hook(
                lambda _, __, given, name=value: seen.__setitem__(name, given)
            ),
            backbone.get_submodule(output).register_forward_pre_hook(
                lambda _, given, name=output: seen.__setitem__(name, given[0])
            ),
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _other_attention(model: InfluenceModel, found: str) -> ModelError:
    return ModelError(
        found,
        where=f"{model.backbone.source!r} ({model.backbone.model.config.model_type})",
        expected="attention that sums a value map's output by its weights, then an output map",
        fix="use another attention method, or a gradient or perturbation method",
    )


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

    return shares(task, read, evaluations=2)


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
        values = task.target.values(model.heads(model.query_from(states, batch)), rows)
        gradients = torch.autograd.grad(values.sum(), layers)
    return tuple(layer.detach() for layer in layers), gradients
