"""What is trained inside the backbone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.errors import ModelError

Body: TypeAlias = PreTrainedModel | PeftModel
"""A backbone, with an adapter on it or without."""


def attach_adapter(model: PreTrainedModel, config: AdapterConfig) -> Body:
    """Freeze the backbone and add the adapter that ``config`` names.

    Raises:
        ModelError: The targets match no module of this backbone.
    """
    model.requires_grad_(False)
    if config.kind == "frozen":
        return model
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        # the pooler is a task head of BERT that no state of ours passes through
        exclude_modules=r".*pooler.*",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ModelError(
            str(error),
            where="model.adapter.targets",
            expected="'all-linear', or names of linear layers of the backbone",
            fix="print(backbone) shows its modules' names",
        ) from error


def restore_adapter(model: PreTrainedModel, folder: Path) -> Body:
    """Put a saved adapter back on its backbone."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def adapter_off(model: Body) -> AbstractContextManager[None]:
    """The untuned backbone, for as long as the context lasts."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def load_adapter_state(model: Body, state: dict[str, Tensor]) -> None:
    """Put saved adapter weights into a model that already has the adapter."""
    set_peft_model_state_dict(model, state)


def adapter_names(model: Body) -> set[str]:
    """Names of the adapter's tensors, as PEFT writes them to disk."""
    return set(get_peft_model_state_dict(model)) if isinstance(model, PeftModel) else set()


def plain_state(model: Body) -> dict[str, Tensor]:
    """State of the backbone as if no adapter had been put on it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        name.replace("base_layer.", ""): tensor
        for name, tensor in base.state_dict().items()
        if "lora_" not in name
    }
