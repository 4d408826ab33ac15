"""The two ends: the whole backbone is trained, or nothing of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, Literal, Self

from torch import Tensor
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.errors import ModelError
from llm_influence.modeling.adapters.adapter import Adapter, register
from llm_influence.modeling.adapters.places import in_pooler


@register("frozen")
class Frozen(Adapter):
    """Nothing of the backbone is trained; unit vectors and heads are."""

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = None
    body: PreTrainedModel

    def __init__(self, model: PreTrainedModel) -> None:
        self.body = model

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        return cls(model)

    @classmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """A backbone read from its own folder is complete."""
        return cls.attach(model, config)

    def off(self) -> AbstractContextManager[None]:
        """Nothing to switch off."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing to put back."""

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Adapter.backbone_state`."""
        return self.body.state_dict()


@register("full")
class Full(Frozen):
    """The whole backbone is trained.

    Its weights are saved as the folder's backbone, in checkpoints too. The untuned ones are gone
    after the first step, and nothing that needs them works any more.
    """

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "backbone"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not in_pooler(name))
        return cls(model)

    def off(self) -> AbstractContextManager[None]:
        """Refused: see the class."""
        raise ModelError(
            "the backbone itself was tuned, so there is no untuned one left",
            where="model.adapter.kind = 'full'",
            expected="an adapter that can be switched off (new items get their vectors from the "
            "untuned backbone)",
            fix="put all items into the item table before training, or train another kind",
        )

    def state(self) -> dict[str, Tensor]:
        """All weights."""
        return self.body.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        self.body.load_state_dict(state)
