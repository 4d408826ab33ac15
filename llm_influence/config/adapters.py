"""What is trained inside the backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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
