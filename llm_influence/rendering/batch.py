"""Padded tensors of encoded histories: the input of the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from llm_influence.rendering.encoder import EncodedHistories
from llm_influence.types import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBatch:
    """B histories padded on the right to T tokens. Nothing else aligns tokens with events.

    Attributes:
        input_ids: (B, T) token or embedding ids; 0 at padding.
        attention_mask: (B, T) bool, False at padding and at tokens hidden by removal ``mask``.
        event_index: (B, T) the token's event, -1 for prompt and padding.
        field_index: (B, T) the token's field, -1 for none.
        added_ids: (B, T, A) embedding ids added to each event's last token, -1 for none.
        ends: (B, E + 1) position of the last prompt token, then of each event's last token; 0
            beyond a history's events.
        num_events: (B,) number of events of each history.
        when: (B,) gap code from the last event to the query time, 0 where unknown.
    """

    input_ids: Tensor
    attention_mask: Tensor
    event_index: Tensor
    field_index: Tensor
    added_ids: Tensor
    ends: Tensor
    num_events: Tensor
    when: Tensor

    def to(self, device: torch.device) -> EncodedBatch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return replace(self, **moved)

    def last(self) -> Tensor:
        """(B,) position of each history's last visible token, where the next event is predicted."""
        places = torch.arange(self.attention_mask.shape[1], device=self.attention_mask.device)
        return (self.attention_mask * places).argmax(dim=1)

    def hide(self, kept: Tensor) -> EncodedBatch:
        """Hide the tokens of every event that (B, E) bool ``kept`` does not keep."""
        prompt = kept.new_ones(len(kept), 1)
        visible = torch.cat([prompt, kept], dim=1).gather(1, self.event_index + 1)
        return replace(self, attention_mask=self.attention_mask & visible)

    def take(self, rows: Tensor) -> EncodedBatch:
        """(M,) histories by number, repeats allowed, padded to the longest of them."""
        longest = int(self.last()[rows].max()) + 1
        taken = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        for name in ("input_ids", "attention_mask", "event_index", "field_index", "added_ids"):
            taken[name] = taken[name][:, :longest]
        return replace(self, **taken)

    def event_sums(self, token_values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum token values by event.

        Args:
            token_values: (B, T), zero at padding.

        Returns:
            (B, E) sums by event (0 beyond a history's events), and (B,) the prompt's sum.
        """
        width = self.ends.shape[1]  # column 0 collects the prompt
        sums = token_values.new_zeros(len(token_values), width)
        sums.scatter_add_(1, self.event_index + 1, token_values)
        return sums[:, 1:], sums[:, 0]


def collate(encoded: EncodedHistories, rows: IntArray | None = None) -> EncodedBatch:
    """Pad the given rows (default: all) of ``encoded`` to their longest."""
    rows = np.arange(len(encoded)) if rows is None else np.asarray(rows)
    starts = encoded.offsets[rows]
    lengths = encoded.offsets[rows + 1] - starts
    places = np.arange(int(lengths.max(initial=1)))
    real = places < lengths[:, None]
    flat = np.where(real, starts[:, None] + places, 0)

    def pad(column: IntArray, filler: int) -> IntArray:
        shown = real.reshape(real.shape + (1,) * (column.ndim - 1))
        if not len(column):
            return np.full(real.shape + column.shape[1:], filler)
        return np.where(shown, column[flat], filler)

    event_index = pad(encoded.event_index, -1)
    num_events = encoded.num_events[rows]
    return EncodedBatch(
        input_ids=torch.from_numpy(pad(encoded.input_ids, 0)),
        attention_mask=torch.from_numpy(real),
        event_index=torch.from_numpy(event_index),
        field_index=torch.from_numpy(pad(encoded.field_index, -1)),
        added_ids=torch.from_numpy(pad(encoded.added_ids, -1)),
        ends=torch.from_numpy(_ends(event_index, real, num_events)),
        num_events=torch.from_numpy(num_events.astype(np.int64)),
        when=torch.from_numpy(encoded.when[rows].astype(np.int64)),
    )


def _ends(event_index: IntArray, real: np.ndarray, num_events: IntArray) -> IntArray:
    """(B, E + 1) last token of the prompt and of each event."""
    following = np.concatenate([event_index[:, 1:], np.full((len(event_index), 1), -2)], axis=1)
    following[:, :-1][~real[:, 1:]] = -2  # padding follows: the history ends here
    row, place = np.nonzero(real & (following != event_index))
    ends = np.zeros((len(event_index), int(num_events.max(initial=0)) + 1), dtype=np.int64)
    ends[row, event_index[row, place] + 1] = place
    return ends
