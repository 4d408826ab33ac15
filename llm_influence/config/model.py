"""The backbone, its adapter and its heads.

What is trained inside the backbone.

What is predicted, and by which loss.

The backbone with its adapter and heads; backbones made from nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_influence.config.data import NeighborsConfig
from llm_influence.config.document import Section

ADAPTER_OPTIONS: dict[str, tuple[str, ...]] = {
    "lora": ("rank", "alpha", "dropout", "targets"),
    "dora": ("rank", "alpha", "dropout", "targets"),
    "rslora": ("rank", "alpha", "dropout", "targets"),
    "adalora": (
        *("rank", "initial_rank", "alpha", "dropout", "targets"),
        *("prune_from", "prune_until", "prune_every", "orthogonality"),
    ),
    "ia3": ("targets",),
    "bottleneck": ("width", "targets"),
    "full": (),
    "frozen": (),
}
"""The options that each kind of adapter reads."""


class AdapterConfig(Section):
    """What is trained inside the backbone; docs/adapters.md says when to use which.

    ``lora``, ``dora``, ``rslora`` train low-rank updates of the ``targets`` matrices; ``adalora``
    starts with ``initial_rank`` and prunes to ``rank`` on average while it trains; ``ia3`` scales
    keys, values and feed-forward activations; ``bottleneck`` adds small networks of ``width``
    units; ``full`` trains the whole backbone; ``frozen`` leaves it as it is and trains the heads
    alone. An option that the kind does not read (`ADAPTER_OPTIONS`) must keep its default.
    """

    kind: Literal["lora", "dora", "rslora", "adalora", "ia3", "bottleneck", "full", "frozen"] = (
        "lora"
    )
    rank: int = Field(16, ge=1, description="of an update; adalora: on average, after pruning")
    initial_rank: int | None = Field(None, ge=2, description="default: 1.5 x rank")
    alpha: float = Field(32.0, gt=0, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the updates")
    targets: str | list[str] | None = Field(
        None,
        description="module names, a regular expression of whole names, or 'all-linear'; "
        "default: the kind's own places",
    )
    width: int = Field(64, ge=1, description="hidden units of a bottleneck")
    prune_from: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    prune_until: float = Field(0.7, gt=0, le=1, description="share of all steps")
    prune_every: float = Field(0.01, gt=0, le=1, description="share of all steps")
    orthogonality: float = Field(0.1, ge=0, description="weight of the penalty in the loss")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> AdapterConfig:
        fields, read = type(self).model_fields, ADAPTER_OPTIONS[self.kind]
        for name in fields.keys() - {"kind", *read}:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"no {name}: an adapter of kind {self.kind!r} does not read it")
        if self.kind == "adalora" and self.first_rank <= self.rank:
            raise ValueError(f"an initial_rank ({self.first_rank}) above rank ({self.rank})")
        if self.prune_from >= self.prune_until:
            raise ValueError(f"prune_from {self.prune_from} before prune_until {self.prune_until}")
        return self

    @property
    def first_rank(self) -> int:
        """Rank that adalora starts with."""
        return self.initial_rank or (3 * self.rank + 1) // 2

    def describe(self) -> str:
        """One line for reports: the kind and the options that it reads."""
        shown = {name: getattr(self, name) for name in ADAPTER_OPTIONS[self.kind]}
        if "initial_rank" in shown:
            shown["initial_rank"] = self.first_rank
        texts = [
            f"{name.replace('_', ' ')} {_plainly(value)}"
            for name, value in shown.items()
            if value is not None
        ]
        return ", ".join([self.kind, *texts])


def _plainly(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


LARGE_CATALOGUE = 20_000
"""Items up to which training scores all of them after every event; see docs/large_catalogues.md."""


class ItemHeadConfig(Section):
    """Scores of the next item: ``dot`` or temperature-scaled ``cosine`` with the item vectors.

    ``loss`` is ``full`` cross-entropy over the catalogue, ``sampled`` softmax with logQ correction,
    or ``gbce``; ``auto`` is full up to `LARGE_CATALOGUE` items and sampled above. ``negatives``
    and ``calibration`` (gBCE's t) are read by the losses that draw. docs/large_catalogues.md.
    """

    weight: float = Field(1.0, ge=0)
    score: Literal["cosine", "dot"] = "cosine"
    temperature: float = Field(0.07, gt=0, description="used by cosine; learned from here")
    loss: Literal["auto", "full", "sampled", "gbce"] = "auto"
    negatives: int = Field(1024, ge=1, description="items drawn for a step, on average")
    calibration: float = Field(0.75, ge=0, le=1, description="0: plain BCE, 1: calibrated")
    residual_rank: int | None = Field(
        None, ge=1, description="of the learned residuals; default: full, 32 in a large catalogue"
    )

    repeats: bool = Field(
        False, description="an item counts more, the more often the history has it (style token)"
    )
    neighbors: NeighborsConfig = NeighborsConfig()

    def loss_for(self, items: int) -> Literal["full", "sampled", "gbce"]:
        """The loss for a catalogue of this many items."""
        if self.loss != "auto":
            return self.loss
        return "sampled" if items > LARGE_CATALOGUE else "full"

    def residual_width(self, items: int, width: int) -> int:
        """Numbers learned for each of so many items, whose vectors are ``width`` long."""
        wanted = self.residual_rank or (32 if items > LARGE_CATALOGUE else width)
        return min(wanted, width)


class BehaviorHeadConfig(Section):
    """Softmax over the next behaviour."""

    weight: float = Field(0.1, ge=0)


class FeedbackHeadConfig(Section):
    """Feedback on the next event, given its item: a click, a purchase, a like, a rating.

    ``binary``: will the label be at least ``positive_from``? ``ordinal``: which of the labels
    that training has, in their order? ``regression``: the label itself. ``label`` names the
    column of the log that is predicted: ``value``, which later histories show, or ``label``, which
    they never do. docs/heads.md.
    """

    weight: float = Field(0.0, ge=0, description="0: no such head is built")
    kind: Literal["binary", "ordinal", "regression"] = "binary"
    label: Literal["value", "label"] = "value"
    positive_from: float = Field(
        1.0, description="ordinal: log-odds explained are those of a label of at least this"
    )
    behaviors: list[str] = Field(
        [], description="events with these behaviours are asked; default: all that have a label"
    )
    hidden: int = Field(64, ge=1, description="units of the small network")
    dropout: float = Field(0.0, ge=0, lt=1, description="of these units")
    aggregate_days: float | None = Field(
        None,
        gt=0,
        description="also read how many events of each behaviour there were and the sums of their "
        "values, over all and with this half-life in days (style token); null: not",
    )


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
