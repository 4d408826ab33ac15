"""What is predicted, and by which loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_influence.config.document import Section
from llm_influence.config.knowledge import NeighborsConfig

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
    totals_days: float | None = Field(
        None,
        gt=0,
        description="also read how many events of each behaviour there were and the sums of their "
        "values, over all and with this half-life in days (style token); null: not",
    )
