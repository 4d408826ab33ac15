"""Sections on the backbone, its adapter and its heads; sizes of a backbone made from scratch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llm_influence.config.data import NeighborsConfig
from llm_influence.config.document import Section

ADAPTER_OPTIONS: dict[str, tuple[str, ...]] = {
    "lora": ("rank", "alpha", "dropout", "targets", "peft"),
    "dora": ("rank", "alpha", "dropout", "targets", "peft"),
    "rslora": ("rank", "alpha", "dropout", "targets", "peft"),
    "adalora": (
        *("rank", "initial_rank", "alpha", "dropout", "targets", "peft"),
        *("prune_from", "prune_until", "prune_every", "orthogonality"),
    ),
    "ia3": ("targets", "peft"),
    "bottleneck": ("width", "targets"),
    "full": (),
    "frozen": (),
}
"""The options that each kind of adapter reads."""
LARGE_CATALOGUE = 20_000
"""Number of items up to which training computes all scores after every event."""
RECURRENT = ("gru", "lstm", "recurrence")
"""Backbones that carry a state from token to token instead of using attention."""
WITHOUT = "none"
"""Name of the backbone that reads nothing: its state is the same after every history."""
OWN_BACKBONES = (*RECURRENT, WITHOUT)
"""Backbones that are made here instead of being loaded."""


class AdapterConfig(Section):
    """The part of the backbone that is trained.

    An option that the kind does not read (`ADAPTER_OPTIONS`) must keep its default.
    """

    kind: Literal["lora", "dora", "rslora", "adalora", "ia3", "bottleneck", "full", "frozen"] = (
        Field(
            "lora",
            description="lora, dora, rslora: low-rank updates of weight matrices. adalora: "
            "low-rank updates whose ranks are pruned during training. ia3: scales of keys, values "
            "and feed-forward activations. bottleneck: small networks after the layers. full: the "
            "whole backbone. frozen: nothing but embeddings and heads.",
        )
    )
    rank: int = Field(
        16, ge=1, description="Rank of an update; for adalora the average rank after pruning."
    )
    alpha: float = Field(32.0, gt=0, description="Updates are scaled by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout probability on the input of the updates."
    )
    targets: str | list[str] | None = Field(
        None,
        description="Modules that get the adapter: a list of names, a regular expression of whole "
        "names, or all-linear. null: the usual modules of the kind.",
    )
    width: int = Field(64, ge=1, description="Number of hidden units of a bottleneck.")
    initial_rank: int | None = Field(
        None, ge=2, description="Rank at the start of adalora. null: 1.5 times rank."
    )
    prune_from: float = Field(
        0.1, ge=0, lt=1, description="Share of all steps after which adalora starts to prune."
    )
    prune_until: float = Field(
        0.7, gt=0, le=1, description="Share of all steps after which adalora stops pruning."
    )
    prune_every: float = Field(
        0.01, gt=0, le=1, description="Share of all steps between two prunings of adalora."
    )
    orthogonality: float = Field(
        0.1, ge=0, description="Weight of adalora's orthogonality penalty in the loss."
    )
    peft: dict[str, Any] = Field(
        {}, description="More options of the configuration class in the library peft."
    )

    @model_validator(mode="after")
    def _fits_the_kind(self) -> AdapterConfig:
        fields, read = type(self).model_fields, ADAPTER_OPTIONS[self.kind]
        for name in fields.keys() - {"kind", *read}:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"no {name}: an adapter of kind {self.kind!r} does not read it")
        start = str(self.peft.get("init_lora_weights"))
        if start.startswith(("pissa", "olora", "corda", "loftq")):
            raise ValueError(f"another peft.init_lora_weights: {start!r} changes the backbone")
        if self.kind == "adalora" and self.first_rank <= self.rank:
            raise ValueError(f"an initial_rank ({self.first_rank}) above rank ({self.rank})")
        if self.prune_from >= self.prune_until:
            raise ValueError(f"prune_from {self.prune_from} before prune_until {self.prune_until}")
        return self

    @property
    def first_rank(self) -> int:
        """Rank at the start of adalora."""
        return self.initial_rank or (3 * self.rank + 1) // 2

    def describe(self) -> str:
        """One line for reports: the kind and the options that it reads."""
        parts: list[str] = [self.kind]
        for name in ADAPTER_OPTIONS[self.kind]:
            value = self.first_rank if name == "initial_rank" else getattr(self, name)
            if value not in (None, {}):
                text = f"{value:g}" if isinstance(value, float) else value
                text = ", ".join(value) if isinstance(value, list) else text
                parts.append(f"{name.replace('_', ' ')} {text}")
        return ", ".join(parts)


class MemoryConfig(Section):
    """The additive part of the item head: what each past event leads to."""

    enabled: bool = Field(True, description="Add the memory to the language model.")
    neighbors: int = Field(
        200, ge=1, description="Most items that an item leads to; more take more memory."
    )
    associations: bool = Field(
        True,
        description="Also fit a ridge regression of next items on earlier ones; up to 20,000 "
        "items.",
    )
    ages: Literal["auto", "last_event", "query"] = Field(
        "auto",
        description="The age of an event counts to the last event or to the query time. auto: the "
        "one that predicts the training events better.",
    )
    folds: int = Field(
        5,
        ge=2,
        description="Folds of users. The gates are fitted with transitions from the other folds.",
    )


class TextConfig(Section):
    """Text vectors of the items, changed once when the model is built.

    The mean and the whitening matrix are saved, and items added later go through them too.
    """

    conditioning: Literal["none", "centered", "whitened"] = Field(
        "centered",
        description="none: text vectors as the backbone gives them. centered: without their mean. "
        "whitened: also scaled so that all directions vary alike.",
    )
    shrinkage: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share s of the mean variance in the whitened covariance C: "
        "(1 - s) C + s tr(C) / H I. 1: no whitening; for conditioning whitened.",
    )
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of an item's text vector that is replaced by the mean of the items "
        "before and after it in training histories. Items added later are not smoothed.",
    )


class ItemHeadConfig(Section):
    """The head that scores every item of the catalogue as the next one."""

    weight: float = Field(
        1.0, ge=0, description="Weight of the item loss. 0: items are not predicted."
    )
    score: Literal["cosine", "dot"] = Field(
        "cosine",
        description="Score of an item: the cosine of the state and the item's vector divided by a "
        "temperature, or their dot product.",
    )
    temperature: float = Field(
        0.07, gt=0, description="First value of the learned temperature; for the cosine score."
    )
    loss: Literal["auto", "full", "sampled", "gbce"] = Field(
        "auto",
        description="full: cross-entropy over the catalogue. sampled: softmax over drawn items "
        "with logQ correction. gbce: generalised binary cross-entropy over drawn items. auto: full "
        "up to 20,000 items, sampled above.",
    )
    negatives: int = Field(
        1024, ge=1, description="Average number of items drawn in a step; for sampled and gbce."
    )
    calibration: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Calibration t of the loss gbce. 0: plain binary cross-entropy; 1: calibrated "
        "probabilities.",
    )
    residual_rank: int | None = Field(
        None,
        ge=1,
        description="Rank of the learned residuals of the item vectors. null: full rank up to "
        "20,000 items, 32 above.",
    )
    text: TextConfig = TextConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    memory: MemoryConfig = MemoryConfig()

    def loss_for(self, items: int) -> Literal["full", "sampled", "gbce"]:
        """The loss for a catalogue of this many items."""
        if self.loss != "auto":
            return self.loss
        return "sampled" if items > LARGE_CATALOGUE else "full"

    def residual_width(self, items: int, width: int) -> int:
        """Numbers learned for each of ``items`` items whose vectors have ``width`` numbers."""
        return min(self.residual_rank or (32 if items > LARGE_CATALOGUE else width), width)


class BehaviorHeadConfig(Section):
    """The head that predicts the next behaviour."""

    weight: float = Field(
        0.1, ge=0, description="Weight of the behaviour loss. 0: behaviours are not predicted."
    )


class FeedbackHeadConfig(Section):
    """The head that predicts feedback on the next event, given its item: a click, a rating."""

    weight: float = Field(
        0.0, ge=0, description="Weight of the feedback loss. 0: no such head is built."
    )
    kind: Literal["binary", "ordinal", "regression"] = Field(
        "binary",
        description="binary: is the label at least positive_from? ordinal: which of the ordered "
        "labels of the training data is it? regression: the label as a number.",
    )
    label: Literal["value", "label"] = Field(
        "value",
        description="Column of the log that is predicted. Later histories show a value to the "
        "model; they never show a label.",
    )
    positive_from: float = Field(
        1.0,
        description="Lowest label that counts as positive. An ordinal head explains the log-odds "
        "of such a label; a regression does not use it.",
    )
    behaviors: list[str] = Field(
        [], description="Behaviours of training and evaluation examples. []: all with a label."
    )
    hidden: int = Field(64, ge=1, description="Number of hidden units of the head.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability of the hidden units.")
    aggregate_days: float | None = Field(
        None,
        gt=0,
        description="Half-life in days of aggregate features: number of events and sum of values "
        "by behaviour, over all time and with this half-life. null: no aggregate features. Needs "
        "style token.",
    )
    candidate_features: bool = Field(
        False,
        description="Counts and means of the labels of the candidate, of the user's events, and of "
        "those of the user's events that are like the candidate.",
    )


class RecurrentConfig(Section):
    """Sizes of the backbones gru, lstm and recurrence, whose weights start at random."""

    width: int = Field(128, ge=1, description="Number of hidden units of the state.")
    layers: int = Field(
        1, ge=1, description="Number of layers of a gru or lstm, one above the other."
    )
    words: str | None = Field(
        None,
        description="Transformer that reads the texts of items, named as model.backbone. null: "
        "items have learned vectors alone.",
    )


class ModelConfig(Section):
    """The backbone, its adapter and the heads."""

    backbone: str = Field(
        "minilm",
        description="A packaged model (minilm, smollm2-135m), a local folder, a Hugging Face hub "
        "id, a recurrent network (gru, lstm, recurrence), or none: popularity and the memory.",
    )
    layers: int | None = Field(
        None, ge=1, description="Number of first layers of the backbone in use. null: all layers."
    )
    dropout: float | None = Field(
        0.2,
        ge=0,
        lt=1,
        description="Dropout probability of hidden states; attention weights have none. null: the "
        "dropout of the backbone's own configuration.",
    )
    residual_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that a training step uses an item's text vector without its "
        "learned residual.",
    )
    positions: Literal["start", "end"] = Field(
        "start",
        description="start: positions of tokens count from the start of the history. end: the last "
        "token of every history has the same position; needs train.examples prefixes or a "
        "random_offset, and predictions have no cache of earlier tokens.",
    )
    random_offset: int | None = Field(
        0,
        ge=0,
        description="Largest random offset of all positions of a history in training, so that they "
        "say nothing about its length. Predictions use the offset 10. null: the room that the "
        "backbone's context leaves. Needs absolute positions.",
    )
    when: bool = Field(
        False, description="Give the heads the time from the last event to the query time."
    )
    recurrent: RecurrentConfig = RecurrentConfig()
    adapter: AdapterConfig = AdapterConfig()
    item_head: ItemHeadConfig = ItemHeadConfig()
    behavior_head: BehaviorHeadConfig = BehaviorHeadConfig()
    feedback_head: FeedbackHeadConfig = FeedbackHeadConfig()

    @model_validator(mode="after")
    def _has_a_head(self) -> ModelConfig:
        if not any(h.weight for h in (self.item_head, self.behavior_head, self.feedback_head)):
            raise ValueError("a weight above 0 for at least one head")
        return self

    @property
    def feedback(self) -> FeedbackHeadConfig | None:
        """Options of the feedback head; None where there is no such head."""
        return self.feedback_head if self.feedback_head.weight else None

    @model_validator(mode="after")
    def _fits_the_backbone(self) -> ModelConfig:
        if self.backbone not in OWN_BACKBONES:
            if self.recurrent != RecurrentConfig():
                raise ValueError(f"no recurrent: backbone {self.backbone!r} does not read it")
            return self
        name = f"backbone {self.backbone!r}"
        if self.adapter.kind != "full":
            raise ValueError(
                f"adapter.kind 'full', not {self.adapter.kind!r}: {name} starts with random "
                "weights, all of which must be trained"
            )
        if self.positions != "start":
            raise ValueError(f"positions 'start': {name} has no positions")
        if self.random_offset:
            raise ValueError(f"random_offset 0: {name} has no positions")
        if self.layers is not None:
            raise ValueError(f"no layers: {name} reads recurrent.layers instead")
        if self.backbone in ("recurrence", WITHOUT) and self.recurrent.layers > 1:
            raise ValueError(f"recurrent.layers 1: {name} has one layer")
        if self.residual_dropout and not self.recurrent.words:
            raise ValueError(
                "residual_dropout 0, or recurrent.words: an item without text has no vector but "
                "its residual"
            )
        return self


class ScratchConfig(Section):
    """Sizes of a backbone and tokenizer that are made from scratch."""

    vocab_size: int = Field(
        4000, ge=300, description="Number of tokens of the tokenizer, the 256 bytes included."
    )
    layers: int = Field(4, ge=1, description="Number of transformer layers.")
    width: int = Field(256, ge=8, description="Number of hidden units of a token's state.")
    heads: int = Field(4, ge=1, description="Number of attention heads of a layer.")
    context: int = Field(1024, ge=16, description="Largest number of tokens of a history.")
    seed: int = Field(0, description="Seed of tokenizer and random weights.")
