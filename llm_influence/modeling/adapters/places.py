"""Where in a backbone an adapter goes, found by structure, not by architecture.

A transformer layer holds linear maps in the order of their use. Those under a part whose name
contains "att" (attention, attn, self_attn) are the attention's, the last of them its output
projection; of the others, the last is the feed-forward block's output projection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_influence.errors import ModelError


@dataclass(frozen=True, slots=True)
class LayerPlaces:
    """Full names of one layer's linear maps.

    Attributes:
        attention_inputs: What makes queries, keys and values, apart or in one.
        attention_output: Back from the heads to the residual stream.
        feed_forward_output: Back from the wide activations to the residual stream.
    """

    attention_inputs: tuple[str, ...]
    attention_output: str
    feed_forward_output: str


def in_pooler(name: str) -> bool:
    """Whether a name lies in BERT's pooler, a task head that no state of ours passes through."""
    return "pooler" in name


def in_attention(name: str) -> bool:
    """Whether a module of this full name is a part of an attention block."""
    return any("att" in part for part in name.split("."))


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Linear maps by full name, in order; GPT-2's ``Conv1D`` is one, transposed."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not in_pooler(name)
    }


def output_size(module: nn.Module) -> int:
    """Size of what a linear map gives."""
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]


def is_transposed(model: nn.Module) -> bool:
    """Whether the linear maps store their weights as (in, out); PEFT wants to be told."""
    return any(isinstance(module, Conv1D) for module in linear_maps(model).values())


def layer_places(model: PreTrainedModel) -> list[LayerPlaces]:
    """The places in every layer.

    Raises:
        ModelError: The backbone is built in another way.
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
            raise _built_otherwise(model, f"layer {number} has the linear maps {list(maps)}")
        start = f"{stack}.{number}."
        inputs = tuple(start + name for name in attention[:-1])
        places.append(LayerPlaces(inputs, start + attention[-1], start + others[-1]))
    if not places:
        raise _built_otherwise(model, f"no list of {count} layers was found")
    return places


def named_places(model: PreTrainedModel, targets: str | list[str]) -> list[str]:
    """Full names of the linear maps that ``targets`` names, by the rules of PEFT.

    Args:
        model: The backbone.
        targets: "all-linear", a regular expression of whole names, or a list of names or of
            their last parts.

    Raises:
        ModelError: None is named.
    """
    maps = linear_maps(model)
    if targets == "all-linear":
        found = list(maps)
    elif isinstance(targets, str):
        found = [name for name in maps if re.fullmatch(targets, name)]
    else:
        found = [name for name in maps if any(f".{name}".endswith(f".{t}") for t in targets)]
    if not found:
        raise wrong_targets(f"No modules match {targets!r}")
    return found


def wrong_targets(found: str) -> ModelError:
    """The error of targets that are not there."""
    return ModelError(
        found,
        where="model.adapter.targets",
        expected="'all-linear', or names of linear layers of the backbone",
        fix="print(backbone) shows its modules' names",
    )


def _built_otherwise(model: PreTrainedModel, found: str) -> ModelError:
    return ModelError(
        found,
        where=f"{type(model).__name__}, model.adapter.targets not given",
        expected="layers with an attention and a feed-forward block, each ending in a linear map",
        fix="name the modules in model.adapter.targets, or train model.adapter.kind 'lora'",
    )
