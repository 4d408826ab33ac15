"""What the model reads when only some of the players are there: a rendering a coalition.

``drop``: the other events never happened; the history is rendered again and the next gap is
measured from the previous kept event. ``mask``: the other events' tokens are hidden, everything
else stays in its place. ``replace``: a neutral event stands in the place of each other event, its
token's vectors being the mean vectors of their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.players import Players
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.rendering.encoder import EncodedHistories, Encoder
from llm_influence.types import BoolArray, History, IntArray

Removal = Literal["drop", "mask", "replace"]
REMOVALS: tuple[Removal, ...] = ("drop", "mask", "replace")

OWN = -2
"""A token that has its own vector, where a field's number would say whose mean stands in."""


@dataclass(frozen=True, slots=True, eq=False)
class Renderings:
    """R renderings, one after the other, T tokens in all.

    Attributes:
        encoded: The tokens.
        visible: (T,) False where a token is hidden.
        neutral: (T,) `OWN`, or the field whose mean vector stands in for the token's own.
    """

    encoded: EncodedHistories
    visible: BoolArray
    neutral: IntArray

    def __len__(self) -> int:
        """Number of renderings R."""
        return len(self.encoded)

    @property
    def lengths(self) -> IntArray:
        """(R,) tokens, hidden ones included."""
        return np.diff(self.encoded.offsets)

    def batch(self, rows: IntArray) -> tuple[EncodedBatch, Tensor]:
        """Renderings as a padded batch, and (B, T) `neutral` of its tokens."""
        batch = collate(self.encoded, rows)
        starts, lengths = self.encoded.offsets[rows], self.lengths[rows]
        places = np.arange(batch.input_ids.shape[1])
        flat = np.where(places < lengths[:, None], starts[:, None] + places, 0)
        shown = batch.attention_mask & torch.from_numpy(self.visible[flat])
        return replace(batch, attention_mask=shown), torch.from_numpy(self.neutral[flat])

    def records(self) -> tuple[IntArray, IntArray, IntArray]:
        """Visible tokens as numbers that say all the model reads of them.

        Returns:
            (V, 3 + A) token, place, neutral, added ids; (V,) the rendering; (V,) the event.
        """
        owner = np.repeat(np.arange(len(self)), self.lengths)
        place = np.arange(len(owner)) - np.repeat(self.encoded.offsets[:-1], self.lengths)
        columns = [self.encoded.input_ids, place, self.neutral]
        table = np.column_stack([*columns, self.encoded.added_ids]).astype(np.int64)
        table[self.neutral != OWN, 0] = 0  # its own word is not read
        shown = self.visible
        return table[shown], owner[shown], self.encoded.event_index[shown]


def render(
    encoder: Encoder,
    histories: Sequence[History],
    players: Players,
    rows: Sequence[int],
    masks: Sequence[BoolArray],
    removal: Removal,
) -> Renderings:
    """Render every coalition.

    Args:
        encoder: Of the model.
        histories: N histories that fit the context.
        players: Who may be kept or removed.
        rows: R numbers of histories.
        masks: R arrays (P,), True where a player is kept.
        removal: What happens to the others; `drop` is for whole events.
    """
    if removal == "drop":
        kept = [histories[row].keep(mask) for row, mask in zip(rows, masks, strict=True)]
        encoded = encoder.encode(kept)
        size = len(encoded.input_ids)
        return Renderings(encoded, np.ones(size, dtype=bool), np.full(size, OWN))
    encoded = _repeated(encoder.encode(histories), np.asarray(rows, dtype=np.int64))
    stays, added_stays = players.tokens(encoded, encoder, masks)
    added = np.where(added_stays, encoded.added_ids, -1)
    encoded = replace(encoded, added_ids=added)
    if removal == "mask":
        return Renderings(encoded, stays, np.full(len(stays), OWN))
    neutral = np.where(stays, OWN, encoded.field_index)
    return Renderings(encoded, np.ones_like(stays), neutral)


def _repeated(encoded: EncodedHistories, rows: IntArray) -> EncodedHistories:
    """The histories numbered ``rows``, one after the other."""
    lengths = np.diff(encoded.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.repeat(encoded.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return EncodedHistories(
        input_ids=encoded.input_ids[flat],
        event_index=encoded.event_index[flat],
        field_index=encoded.field_index[flat],
        added_ids=encoded.added_ids[flat],
        offsets=offsets,
        num_events=encoded.num_events[rows],
        left_out=encoded.left_out[rows],
        when=encoded.when[rows],
    )
