"""Layers of a transformer: their linear maps, the places of adapters, and bottlenecks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_influence.errors import ModelError


@dataclass(frozen=True, slots=True)
class LayerPlaces:
    """Full names of the linear maps of one layer.

    Attributes:
        attention_inputs: Maps to queries, keys and values, one or several.
        attention_output: Map from the heads back to the residual stream.
        feed_forward_output: Map from the wide activations back to the residual stream.
    """

    attention_inputs: tuple[str, ...]
    attention_output: str
    feed_forward_output: str


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Linear maps by full name, without BERT's unused pooler; GPT-2's ``Conv1D`` is one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "pooler" not in name
    }


def layer_places(model: PreTrainedModel) -> list[LayerPlaces]:
    """The places of adapters in every layer, found by structure.

    Linear maps inside a module whose name contains "att" belong to the attention. The last of them,
    and the last of all others, are the output projections.

    Raises:
        ModelError: The backbone has another structure.
    """
    count, width = model.config.num_hidden_layers, model.config.hidden_size
    stacks = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )
    stack, layers = next(stacks, ("", nn.ModuleList()))
    places = []
    for number, layer in enumerate(layers):
        maps = linear_maps(layer)
        attention = [name for name in maps if in_attention(name)]
        others = [name for name in maps if not in_attention(name)]
        outputs = [names[-1] for names in (attention, others) if names]
        if len(outputs) < 2 or any(output_size(maps[name]) != width for name in outputs):
            raise _other_structure(model, f"layer {number} has the linear maps {list(maps)}")
        start = f"{stack}.{number}."
        inputs = tuple(start + name for name in attention[:-1])
        places.append(LayerPlaces(inputs, start + attention[-1], start + others[-1]))
    if not places:
        raise _other_structure(model, f"no list of {count} layers was found")
    return places


def in_attention(name: str) -> bool:
    """Whether a module of this full name is part of an attention block."""
    return any("att" in part for part in name.split("."))


def output_size(module: nn.Module) -> int:
    """Output size of a linear map."""
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]


def is_transposed(model: nn.Module) -> bool:
    """Whether the weights are stored as (in, out)."""
    return any(isinstance(module, Conv1D) for module in linear_maps(model).values())


def named_places(model: PreTrainedModel, targets: str | list[str]) -> list[str]:
    """Full names of the linear maps that ``targets`` names, by the rules of PEFT.

    Args:
        model: The backbone.
        targets: "all-linear", a regular expression of whole names, or a list of names or of the
            last parts of names.

    Raises:
        ModelError: No linear map matches.
    """
    maps = linear_maps(model)
    if targets == "all-linear":
        names = list(maps)
    elif isinstance(targets, str):
        names = [name for name in maps if re.fullmatch(targets, name)]
    else:
        names = [name for name in maps if any(f".{name}".endswith(f".{t}") for t in targets)]
    if not names:
        raise wrong_targets(f"No modules match {targets!r}")
    return names


def wrong_targets(reason: str) -> ModelError:
    """The error for targets that do not exist."""
    return ModelError(
        reason,
        where="model.adapter.targets",
        expected="'all-linear', or names of linear layers of the backbone",
        fix="print(backbone) shows its modules' names",
    )


def _other_structure(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        reason,
        where=f"{type(model).__name__}, model.adapter.targets not given",
        expected="layers with an attention and a feed-forward block, each ending in a linear map",
        fix="name the modules in model.adapter.targets, or train model.adapter.kind 'lora'",
    )


def ia3_places(
    model: PreTrainedModel, targets: str | list[str] | None
) -> tuple[list[str], list[str]]:
    """Linear maps that get scales of (IA)3, and those of them that are scaled at their input.

    By default these are the maps to keys and values and back from the wide activations. If one
    matrix gives queries, keys and values, all three are scaled: a scale of queries has the effect
    of the same scale of keys.
    """
    if targets is None:
        layers = layer_places(model)
        names = [name for layer in layers for name in _keys_and_values(layer)]
        names += [layer.feed_forward_output for layer in layers]
    else:
        names = named_places(model, targets)
    maps, width = linear_maps(model), model.config.hidden_size
    # maps back to the residual stream are scaled at their wide input
    return names, [n for n in names if not in_attention(n) and output_size(maps[n]) == width]


def _keys_and_values(layer: LayerPlaces) -> tuple[str, ...]:
    """Maps to keys and values: by initial (key, k_proj, k_lin), or one map to everything."""
    by_initial = {name: name.rpartition(".")[2][0].lower() for name in layer.attention_inputs}
    names = tuple(name for name, initial in by_initial.items() if initial in "kv")
    if {by_initial[name] for name in names} == {"k", "v"}:
        return names
    if len(layer.attention_inputs) == 1:
        return layer.attention_inputs
    raise ModelError(
        f"no keys and values among {list(layer.attention_inputs)}",
        where="model.adapter.kind = 'ia3', model.adapter.targets not given",
        expected="modules named k... and v..., or one that makes queries, keys and values",
        fix="name the modules in model.adapter.targets",
    )


class Bottleneck(nn.Module):
    """``x + up(gelu(down(x)))``; ``up`` starts at zero, so that x is unchanged at first."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.active = True
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) from (..., size)."""
        return x + self.up(F.gelu(self.down(x))) if self.active else x
