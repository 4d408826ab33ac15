"""Numbers that the heads read beside a state: `QueryState`.

A state is a mean of what attention reads, and a mean does not say how often something occurred.
Heads that need such numbers get them in a `QueryState`. Hidden tokens, tokens of the prompt and
tokens whose vector was replaced by a mean are not counted. Along a path of input vectors a token
counts by the part of its own vector that is present.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, eq=False)
class QueryState:
    """Input of the heads at any number of places, shape (...).

    Attributes:
        hidden: (..., H) hidden states.
        records: (..., E, 5) records of the events (`encoder.RECORD`) for the memory; None for a
            model without memory.
        presence: (..., E) share of each event that is present, 0 for those that came later.
        aggregates: (..., F) aggregate features; None for a model without them.
    """

    hidden: Tensor
    records: Tensor | None = None
    presence: Tensor | None = None
    aggregates: Tensor | None = None

    def __getitem__(self, index: object) -> QueryState:
        """The states at an index of the leading dimensions."""
        return self.map(lambda column: column[index])  # type: ignore[index]

    def __len__(self) -> int:
        """Size of the first dimension."""
        return len(self.hidden)

    @property
    def shape(self) -> torch.Size:
        """Shape (...) of the places, without the last dimension of the columns."""
        return self.hidden.shape[:-1]

    def map(self, function: Callable[[Tensor], Tensor]) -> QueryState:
        """Apply a function to every column that is present."""
        columns: list[Any] = [getattr(self, field.name) for field in fields(self)]
        mapped: list[Any] = [None if column is None else function(column) for column in columns]
        return QueryState(*mapped)

    @classmethod
    def cat(cls, parts: Sequence[QueryState]) -> QueryState:
        """Concatenate states of one model along the first dimension; events are padded."""
        most = max((p.presence.shape[-1] for p in parts if p.presence is not None), default=0)
        parts = [part._padded(most) for part in parts]
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        return cls(*joined)

    def _padded(self, events: int) -> QueryState:
        """The same states with room for more events, of which none is present."""
        if self.records is None or self.presence is None:
            return self
        room = events - self.presence.shape[-1]
        return replace(
            self,
            records=F.pad(self.records, (0, 0, 0, room)),
            presence=F.pad(self.presence, (0, room)),
        )


def present_share(vectors: Tensor, own: Tensor) -> Tensor:
    """(B, T) share of the (B, T, H) own vector of each token in another vector, at least 0."""
    share = (vectors * own).sum(dim=-1) / own.square().sum(dim=-1).clamp(min=1e-12)
    return share.clamp(min=0)


def of_last_event(records: Tensor, before: Tensor) -> Tensor:
    """(B, L, 5) age and distance of the last of the events before each place; other columns 0."""
    last = (before * torch.arange(1, before.shape[-1] + 1, device=before.device)).amax(dim=-1)
    rows = torch.arange(len(records), device=records.device)[:, None]
    chosen = (
        records[rows, (last - 1).clamp(min=0)]
        if records.shape[1]
        else records.new_zeros((*last.shape, records.shape[-1]))
    )
    kept = torch.tensor([0, 0, 0, 1, 1], device=records.device)
    return chosen * kept * (last > 0)[..., None]
