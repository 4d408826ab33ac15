"""What the kinds that PEFT computes share."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.modeling.adapters.adapter import Adapter
from llm_influence.modeling.adapters.places import wrong_targets

_NOT_THE_BACKBONES = ("lora_", "ia3_", ".ranknum.")
"""Marks of the tensors that PEFT's layers keep beside the backbone's own."""


class PeftAdapter(Adapter):
    """An adapter that PEFT puts around linear maps, saved as PEFT writes it."""

    body: PeftModel

    def __init__(self, body: PeftModel, config: AdapterConfig) -> None:
        self.body, self.config = body, config

    @classmethod
    @abstractmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """PEFT's own configuration of this kind on this backbone."""

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        wanted = cls.peft_config(model, config)
        try:
            return cls(get_peft_model(model, wanted), config)
        except ValueError as error:
            raise wrong_targets(str(error)) from error

    @classmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """See `Adapter.restore`."""
        return cls(PeftModel.from_pretrained(model, str(folder), is_trainable=True), config)

    def off(self) -> AbstractContextManager[None]:
        """See `Adapter.off`."""
        return self.body.disable_adapter()

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        return get_peft_model_state_dict(self.body)

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        set_peft_model_state_dict(self.body, state)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        self.body.save_pretrained(str(folder))

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Adapter.backbone_state`."""
        return {
            name.replace("base_layer.", ""): tensor
            for name, tensor in self.body.get_base_model().state_dict().items()
            if not any(mark in name for mark in _NOT_THE_BACKBONES)
        }
