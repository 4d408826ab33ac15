"""Low-rank updates of weight matrices: LoRA and two changes of it."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.modeling.adapters.adapter import register
from llm_influence.modeling.adapters.peft_adapter import PeftAdapter
from llm_influence.modeling.adapters.places import in_pooler, is_transposed


@register("lora")
@register("dora")
@register("rslora")
class LowRank(PeftAdapter):
    """``W + alpha / rank * B A`` with B zero at first.

    ``lora`` is Hu et al. 2021 (arXiv:2106.09685). ``dora`` learns the length of every row of W
    apart from its direction (Liu et al. 2024, arXiv:2402.09353). ``rslora`` divides alpha by the
    root of the rank, so that high ranks learn as fast as low ones (Kalajdzievski 2023,
    arXiv:2312.03732).
    """

    @classmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """See `PeftAdapter.peft_config`."""
        return LoraConfig(
            r=config.rank,
            use_dora=config.kind == "dora",
            use_rslora=config.kind == "rslora",
            **shared_options(model, config),
        )


def shared_options(model: PreTrainedModel, config: AdapterConfig) -> dict[str, Any]:
    """Options that mean the same for every low-rank kind."""
    return {
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.targets or "all-linear",
        "exclude_modules": [n for n, _ in model.named_modules() if in_pooler(n)] or None,
        "fan_in_fan_out": is_transposed(model),
    }
