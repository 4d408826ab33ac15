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

from llm_influence.rendering.encoder import NO_ITEM, EncodedBatch


@dataclass(frozen=True, slots=True, eq=False)
class QueryState:
    """Input of the heads at any number of places, shape (...).

    Attributes:
        hidden: (..., H) hidden states.
        records: (..., E, 5) records of the events (`encoder.RECORD`) for the memory; None for a
            model without memory.
        presence: (..., E) share of each event that is present, 0 for those that came later.
        aggregates: (..., F) aggregate features; None for a model without them.
        events: (..., E, 6) events that the candidate features read (`CandidateFeatures.events`);
            None for a model without them.
        folds: (...) number of the table that the candidate features read; None as above.
    """

    hidden: Tensor
    records: Tensor | None = None
    presence: Tensor | None = None
    aggregates: Tensor | None = None
    events: Tensor | None = None
    folds: Tensor | None = None

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
        most = max((part.num_events for part in parts), default=0)
        parts = [part._padded(most) for part in parts]
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        return cls(*joined)

    @property
    def num_events(self) -> int:
        """Number of events E, with the empty places; 0 for a model that does not read them."""
        if self.presence is not None:
            return self.presence.shape[-1]
        return 0 if self.events is None else self.events.shape[-2]

    def _padded(self, events: int) -> QueryState:
        """The same states with room for more events, of which none is present."""
        room = events - self.num_events
        pads = {"records": (0, 0, 0, room), "presence": (0, room), "events": (0, 0, 0, room)}
        columns: dict[str, Any] = {name: getattr(self, name) for name in pads}
        padded: dict[str, Any] = {
            name: None if column is None else F.pad(column, pads[name])
            for name, column in columns.items()
        }
        return replace(self, **padded)


def present_share(vectors: Tensor, own: Tensor) -> Tensor:
    """(B, T) share of the (B, T, H) own vector of each token in another vector, at least 0."""
    share = (vectors * own).sum(dim=-1) / own.square().sum(dim=-1).clamp(min=1e-12)
    return share.clamp(min=0)


def records_before(batch: EncodedBatch, places: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, E, 5) records of the events before (B, L) places, and (B, L, E) which those are.

    Ages and distances count to the last event before the place.
    """
    exists = batch.records[:, None, :, 0] != NO_ITEM
    before = exists & (batch.ends[:, None, 1:] <= places[..., None])
    records = batch.records[:, None] - of_last_event(batch.records, before)[:, :, None]
    return torch.where(before[..., None], records, NO_ITEM), before


def of_last_event(records: Tensor, before: Tensor) -> Tensor:
    """(B, L, 5) age and distance of the last of the events before each place; other columns 0."""
    numbers = torch.arange(before.shape[-1] + 1, device=before.device)  # 0: no event before
    last = (F.pad(before, (1, 0)) * numbers).amax(dim=-1)
    rows = torch.arange(len(records), device=records.device)[:, None]
    chosen = (
        records[rows, (last - 1).clamp(min=0)]
        if records.shape[1]
        else records.new_zeros((*last.shape, records.shape[-1]))
    )
    kept = torch.tensor([0, 0, 0, 1, 1], device=records.device)
    return chosen * kept * (last > 0)[..., None]
