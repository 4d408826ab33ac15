"""Attention weighted by the length of the vectors that it carries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from llm_influence.attribution.attention import (
    AttentionShares,
    at_query,
    checked,
    eager_attention,
    rolled_out,
)
from llm_influence.attribution.registry import Task, register
from llm_influence.errors import ModelError
from llm_influence.modeling.layers import LayerPlaces, layer_places
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch

Through = Literal["rollout", "last"]
CLOSE = 1e-3
"""Largest difference from what the layer itself computed, as a share of its largest entry."""
NOTHING = 1e-12
"""A sum of lengths below this counts as 0, and all shares are 0."""
_INNER = re.compile(r"\.(base_layer|lora_\w+|bottleneck)(\..*)?$")
"""Parts that adapters add inside a linear map; the name before them is the map itself."""


@register
@dataclass(frozen=True)
class AttentionValueNorm(AttentionShares):
    """Shares of the lengths of the vectors that attention carries, at the last token.

    A token that gets attention but whose value vector is short (a separator, the first token) gives
    little; attention weights alone would call it important.

    Args:
        through: ``rollout``: through all layers; ``last``: the last layer alone.

    Raises:
        ExplanationError: Unknown ``through``.
        ModelError: When it runs: the backbone computes its values in an unknown way.
    """

    name = "attention_value_norm"
    estimates = "the length of the vectors that attention moves from the event to the prediction"
    equation = (
        "N_l[s, t] = length of the sum over heads h of A_l,h[s, t] (x_t W_V,h + b_V,h) W_O,h; "
        "rows divided by their sums; 'rollout': R_l = (N_l + I) / 2 . R_(l-1), 'last': R = N_L; "
        "a_i = last row of R, tokens of i"
    )
    paper = "Kobayashi et al. 2020, arXiv:2004.10102"
    caution = "Never negative: a long vector may oppose the prediction or not matter to it."

    through: Through = "rollout"

    def __post_init__(self) -> None:
        if self.through not in get_args(Through):
            raise self.option_error("through", "'rollout' or 'last'")

    def read(self, task: Task, batch: EncodedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionShares.read`."""
        layers = [
            norms / norms.sum(dim=-1, keepdim=True).clamp(min=NOTHING)
            for norms in value_norms(task.model, batch)
        ]
        return at_query(batch, rolled_out(layers) if self.through == "rollout" else layers[-1])


@torch.no_grad()
def value_norms(model: InfluenceModel, batch: EncodedBatch) -> list[Tensor]:
    """(B, T, T) of each layer: length of the vector that attention moves to a token from another.

    Raises:
        ModelError: The backbone's attention is not ``weights @ values`` of a value map, and then
            an output map.
    """
    backbone = model.backbone.model
    places = [_without_adapter_parts(place) for place in layer_places(backbone)]
    with eager_attention(model.body), _watched(backbone, places) as seen:
        layers = model.attend(batch, model.embed(batch), output_attentions=True).attentions
    norms = []
    for place, weights in zip(places, checked(model, layers), strict=True):
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
    """(B, heads, T, D) values from the output of the value map; shared heads are repeated.

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
    """(width, H) matrix of a linear map, with its adapter.

    Hooks are not applied: a bottleneck after the map is not linear, so it is not part of it.
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
    """Name of the value map: the input map whose name begins with v, else the only one."""
    own = [name for name in place.attention_inputs if name.rpartition(".")[2].startswith("v")]
    return own[0] if own else place.attention_inputs[0]


@contextmanager
def _watched(backbone: nn.Module, places: list[LayerPlaces]) -> Iterator[dict[str, Tensor]]:
    """Outputs of value maps and inputs of output maps, by full name, filled as the model runs."""
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


def _other_attention(model: InfluenceModel, reason: str) -> ModelError:
    return ModelError(
        reason,
        where=f"{model.backbone.source!r} ({model.backbone.model.config.model_type})",
        expected="attention that sums a value map's output by its weights, then an output map",
        fix="use another attention method, or a gradient or perturbation method",
    )
