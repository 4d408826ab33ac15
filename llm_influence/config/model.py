"""The backbone with its adapter and heads; backbones made from nothing."""

from __future__ import annotations

from pydantic import Field, model_validator

from llm_influence.config.adapters import AdapterConfig
from llm_influence.config.document import Section
from llm_influence.config.heads import BehaviorHeadConfig, FeedbackHeadConfig, ItemHeadConfig

RECURRENT = ("gru", "lstm", "recurrence")
"""Backbones that carry a state from token to token instead of attending (docs/recurrent.md)."""


class RecurrentConfig(Section):
    """Sizes of a backbone ``gru``, ``lstm`` or ``recurrence``, whose weights start at random."""

    width: int = Field(128, ge=1, description="numbers of a state")
    layers: int = Field(1, ge=1, description="of gru and lstm, one above the other")
    words: str | None = Field(
        None,
        description="a transformer that reads the items' texts, as model.backbone names one; "
        "default: items have learned vectors alone",
    )


class ModelConfig(Section):
    """The backbone, its adapter and the heads on top.

    A head whose weight is 0 is not trained; the feedback head is then not even built. With
    ``when`` every head also sees how long ago the last event was at the moment of the question.

    ``backbone`` is a packaged asset (``minilm``, ``smollm2-135m``), a local folder or a hub id; or
    ``gru``, ``lstm`` or ``recurrence``, which read ``recurrent`` and are trained whole (``full``).
    """

    backbone: str = "minilm"
    recurrent: RecurrentConfig = RecurrentConfig()
    layers: int | None = Field(None, ge=1, description="keep only the first layers")
    dropout: float | None = Field(
        0.2,
        ge=0,
        lt=1,
        description="of hidden states, none of attention weights; null: as the backbone has it",
    )
    residual_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that an item has its words' vector alone for a step"
    )
    adapter: AdapterConfig = AdapterConfig()
    item_head: ItemHeadConfig = ItemHeadConfig()
    behavior_head: BehaviorHeadConfig = BehaviorHeadConfig()
    feedback_head: FeedbackHeadConfig = FeedbackHeadConfig()
    when: bool = Field(False, description="heads see the gap from the last event to the question")

    @model_validator(mode="after")
    def _has_a_head(self) -> ModelConfig:
        if not any(h.weight for h in (self.item_head, self.behavior_head, self.feedback_head)):
            raise ValueError("a weight above 0 for at least one head")
        return self

    @property
    def feedback(self) -> FeedbackHeadConfig | None:
        """The feedback head's options, None where there is no such head."""
        return self.feedback_head if self.feedback_head.weight else None

    @model_validator(mode="after")
    def _fits_the_backbone(self) -> ModelConfig:
        if self.backbone not in RECURRENT:
            if self.recurrent != RecurrentConfig():
                raise ValueError(f"no recurrent: backbone {self.backbone!r} does not read it")
            return self
        name = f"backbone {self.backbone!r}"
        if self.adapter.kind != "full":
            raise ValueError(
                f"adapter.kind 'full', not {self.adapter.kind!r}: {name} starts at random, and all "
                "of it has to be trained"
            )
        if self.layers is not None:
            raise ValueError(f"no layers: {name} has as many as recurrent.layers says")
        if self.backbone == "recurrence" and self.recurrent.layers > 1:
            raise ValueError(f"recurrent.layers 1: {name} has one gate an event")
        if self.residual_dropout and not self.recurrent.words:
            raise ValueError(
                "residual_dropout 0, or recurrent.words: without words an item has its residual "
                "alone"
            )
        return self


class ScratchConfig(Section):
    """Sizes of a backbone made from nothing (`llm_influence.modeling.scratch`)."""

    vocab_size: int = Field(4000, ge=300, description="pieces, the 256 bytes included")
    layers: int = Field(4, ge=1)
    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    context: int = Field(1024, ge=16, description="most tokens of a history")
    seed: int = 0
