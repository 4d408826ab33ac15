"""What every kind of adapter promises, and the registry of kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeAlias

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig

Body: TypeAlias = PreTrainedModel | PeftModel
"""A backbone, with an adapter on it or without."""

TENSORS, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json"
"""Files of a saved adapter; the names are PEFT's."""


class Adapter(ABC):
    """One backbone with what is trained inside it.

    Attributes:
        body: What computes the states; called like the backbone itself.
        saved_in: The part of a model folder that holds what was trained here, if anything.
    """

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "adapter"
    body: Body

    @classmethod
    @abstractmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """Put a fresh adapter on a backbone, whose parameters all require no gradient.

        Raises:
            ModelError: The adapter finds no place in this backbone.
        """

    @classmethod
    @abstractmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """Put a saved adapter back on its backbone."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """The untuned backbone, for as long as the context lasts.

        Raises:
            ModelError: There is no untuned backbone left.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What training changes, by its names on disk."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Put the tensors of `state` back, in place."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `state` and what `restore` has to know; nothing unless saved in "adapter"."""

    @abstractmethod
    def backbone_state(self) -> dict[str, Tensor]:
        """State of the backbone under the names it has without an adapter."""

    # --- a schedule of its own: only kinds that change while they train have one ----------

    def begin(self, total_steps: int) -> None:  # noqa: B027 - most kinds have no schedule
        """Hear how many optimiser steps the run has, before its first one.

        Raises:
            ConfigError: Too few for the kind's schedule.
        """

    def after_step(self, step: int) -> None:  # noqa: B027
        """Follow optimiser step ``step``, counted from 1, while its gradients are still there."""

    def penalty(self) -> Tensor | None:
        """A term of the loss that belongs to the kind."""
        return None

    def progress(self) -> dict[str, Tensor]:
        """What the schedule has gathered so far: a run that goes on needs it, a model does not."""
        return {}

    def load_progress(self, progress: dict[str, Tensor]) -> None:  # noqa: B027
        """Put back what `progress` gave."""


KINDS: dict[str, type[Adapter]] = {}
"""Every kind by the name that ``model.adapter.kind`` gives it."""


def register(kind: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Make a class the adapter of kind ``kind``; a class may serve several kinds."""

    def keep(adapter: type[Adapter]) -> type[Adapter]:
        KINDS[kind] = adapter
        return adapter

    return keep


def attach_adapter(model: PreTrainedModel, config: AdapterConfig) -> Adapter:
    """Freeze the backbone and put on it the adapter that ``config`` names.

    Raises:
        ModelError: The adapter finds no place in this backbone.
    """
    return KINDS[config.kind].attach(model.requires_grad_(False), config)
