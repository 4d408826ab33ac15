"""(IA)3: learned scales of what the attention and the feed-forward blocks compute with."""

from __future__ import annotations

import re

from peft import IA3Config, PeftConfig
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.errors import ModelError
from llm_influence.modeling.adapters.adapter import register
from llm_influence.modeling.adapters.peft_adapter import PeftAdapter
from llm_influence.modeling.adapters.places import (
    LayerPlaces,
    in_attention,
    is_transposed,
    layer_places,
    linear_maps,
    named_places,
    output_size,
)


@register("ia3")
class IA3(PeftAdapter):
    """Keys, values and wide feed-forward activations times learned vectors (Liu et al. 2022).

    arXiv:2205.05638. The vectors start at one. Where queries, keys and values come out of one
    matrix, all three are scaled: a scale of queries does what the same scale of keys does.
    """

    @classmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """See `PeftAdapter.peft_config`."""
        if config.targets is None:
            layers = layer_places(model)
            names = [name for layer in layers for name in _keys_and_values(layer)]
            names += [layer.feed_forward_output for layer in layers]
        else:
            names = named_places(model, config.targets)
        maps, width = linear_maps(model), model.config.hidden_size
        # what leads back to the residual stream is scaled where it is still wide: at its input
        narrow = [n for n in names if not in_attention(n) and output_size(maps[n]) == width]
        return IA3Config(
            target_modules=_any_of(names),
            feedforward_modules=_any_of(narrow),
            fan_in_fan_out=is_transposed(model),
        )


def _keys_and_values(layer: LayerPlaces) -> tuple[str, ...]:
    """Maps that make keys and values: by initial (key, k_proj, k_lin), or one map of everything."""
    by_initial = {name: name.rpartition(".")[2][0].lower() for name in layer.attention_inputs}
    found = tuple(name for name, initial in by_initial.items() if initial in "kv")
    if {by_initial[name] for name in found} == {"k", "v"}:
        return found
    if len(layer.attention_inputs) == 1:
        return layer.attention_inputs
    raise ModelError(
        f"keys and values cannot be told among {list(layer.attention_inputs)}",
        where="model.adapter.kind = 'ia3', model.adapter.targets not given",
        expected="modules named k... and v..., or one that makes queries, keys and values",
        fix="name the modules in model.adapter.targets",
    )


def _any_of(names: list[str]) -> str:
    return "|".join(map(re.escape, names)) or r"(?!)"  # without names: nothing matches
