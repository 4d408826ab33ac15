"""Players (events, or their fields) and the renderings of coalitions of them.

``drop``: the other events never happened; the history is rendered again and the next gap is
measured from the previous kept event. ``mask``: the other events' tokens are hidden and everything
else keeps its place. ``replace``: a neutral event takes the place of each other event; its tokens
have the mean vectors of their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.errors import ExplanationError, unknown
from llm_influence.influence.facts import USER, Player
from llm_influence.rendering.encoder import (
    EncodedBatch,
    EncodedHistories,
    Encoder,
    collate,
    event_gaps,
    event_records,
)
from llm_influence.rendering.template import FIELDS
from llm_influence.types import BoolArray, History, IntArray

Kind = Literal["events", "fields"]
KINDS: tuple[Kind, ...] = ("events", "fields")


@dataclass(frozen=True, slots=True)
class Players:
    """The units that may be kept or removed.

    Attributes:
        kind: ``events``, or ``fields``: each event's behaviour, item, text, gap and value, as far
            as the template renders them.
        user: Whether the prompt's words (the user's features among them) are one more player, the
            last one.
    """

    kind: Kind = "events"
    user: bool = False

    def __str__(self) -> str:
        """The text that `parse` accepts."""
        return f"{self.kind}+user" if self.user else self.kind

    @classmethod
    def parse(cls, text: str) -> Players:
        """From ``events``, ``fields``, ``events+user`` or ``fields+user``.

        Raises:
            ExplanationError: Another word.
        """
        known = {str(cls(k, u)): cls(k, u) for u in (False, True) for k in KINDS}
        if text not in known:
            raise unknown(ExplanationError, "players", text, known, where="players")
        return known[text]

    @property
    def are_events(self) -> bool:
        """Whether the players are the events and nothing else."""
        return self.kind == "events" and not self.user

    def check_removal(self, removal: str) -> None:
        """Refuse a removal that cannot take a part of an event.

        Raises:
            ExplanationError: Not all players are whole events, and it is not ``replace``.
        """
        if not self.are_events and removal != "replace":
            raise ExplanationError(
                f"removal {removal!r} of parts of events",
                where="players",
                expected="'replace': a part of an event cannot be dropped or masked",
                fix="set removal to replace or leave it out, or explain whole events",
            )

    def of(self, history: History, encoder: Encoder) -> list[Player]:
        """The players of one history, in the order of masks and scores."""
        names = self._names(encoder)
        players = [Player(event, name) for event in range(len(history)) for name in names]
        return [*players, USER] if self.user else players

    def tokens(
        self, encoded: EncodedHistories, encoder: Encoder, masks: Sequence[BoolArray]
    ) -> tuple[BoolArray, BoolArray]:
        """(T,) whether a token stays, and (T, A) whether the ids added to it stay.

        Args:
            encoded: R renderings of whole histories.
            encoder: That rendered them.
            masks: R arrays (P,), True where a player is kept.
        """
        own, added = self.owners(encoded.event_index, encoded.field_index, encoder)
        sizes = np.array([len(mask) for mask in masks], dtype=np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        kept = np.concatenate([*masks, np.ones(1, dtype=bool)])  # the last one is for the prompt
        prompt_player = first + sizes - 1 if self.user else np.full(len(masks), len(kept) - 1)
        owner = np.repeat(np.arange(len(masks)), np.diff(encoded.offsets))
        in_prompt = encoded.event_index < 0
        own = np.where(in_prompt, prompt_player[owner], first[owner] + own)
        added = np.where(in_prompt[:, None], len(kept) - 1, first[owner, None] + added)
        return kept[own], kept[added]

    def owners(
        self, event_index: IntArray, field_index: IntArray, encoder: Encoder
    ) -> tuple[IntArray, IntArray]:
        """The player of each token, as a number in its own history; -1 for the prompt.

        Args:
            event_index: (...) of tokens.
            field_index: (...) of the same tokens.
            encoder: That rendered them.

        Returns:
            (...) players of the tokens, and (..., A) those of what is added to them.
        """
        names = self._names(encoder)
        added_names = [names.index(name) if name in names else 0 for name in encoder.template.added]
        base, in_prompt = event_index * len(names), event_index < 0
        own = np.where(in_prompt, -1, base + self._field(field_index, names))
        added = base[..., None] + np.array(added_names, dtype=np.int64)
        return own, np.where(in_prompt[..., None], -1, added)

    def _names(self, encoder: Encoder) -> list[str | None]:
        """Fields that each event's players stand for; one None for the event as a whole."""
        if self.kind == "events":
            return [None]
        return [name for name in FIELDS if name in encoder.template.fields]

    def _field(self, field_index: IntArray, names: Sequence[str | None]) -> IntArray:
        """(...) which of an event's players a token belongs to; the template's words: the first."""
        if self.kind == "events":
            return np.zeros_like(field_index)
        place = np.zeros(len(FIELDS) + 1, dtype=np.int64)
        for number, name in enumerate(names):
            place[FIELDS.index(str(name))] = number
        return place[field_index]


EVENTS = Players()
"""Whole events."""


Removal = Literal["drop", "mask", "replace"]
REMOVALS: tuple[Removal, ...] = ("drop", "mask", "replace")

OWN = -2
"""Value of `Renderings.neutral` for a token that keeps its own vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Renderings:
    """R renderings, one after the other, T tokens in all.

    Attributes:
        encoded: The tokens.
        visible: (T,) False where a token is hidden.
        neutral: (T,) `OWN`, or the field whose mean vector replaces the token's own.
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
        """Visible tokens as numbers: all that the model reads of them.

        Returns:
            (V, 3 + A) token, place, neutral, added ids; (V,) the rendering; (V,) the event.
        """
        owner = np.repeat(np.arange(len(self)), self.lengths)
        place = np.arange(len(owner)) - np.repeat(self.encoded.offsets[:-1], self.lengths)
        columns = [self.encoded.input_ids, place, self.neutral]
        table = np.column_stack([*columns, self.encoded.added_ids]).astype(np.int64)
        table[self.neutral != OWN, 0] = 0  # its own word is not used
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
        encoded = _with_own_ages(encoder, histories, rows, masks, encoder.encode(kept))
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


def _with_own_ages(
    encoder: Encoder,
    histories: Sequence[History],
    rows: Sequence[int],
    masks: Sequence[BoolArray],
    encoded: EncodedHistories,
) -> EncodedHistories:
    """The events that are left keep the ages and distances that they had before the removal."""
    whole = event_records(encoder.vocabulary.columns(histories), histories)
    of_history = np.split(whole, np.cumsum([len(history) for history in histories])[:-1])
    kept = [of_history[row][mask] for row, mask in zip(rows, masks, strict=True)]
    shown = [own[len(own) - n :] for own, n in zip(kept, encoded.num_events, strict=True)]
    gap = event_gaps(histories)[np.asarray(rows, dtype=np.int64)]
    return replace(encoded, records=np.concatenate([whole[:0], *shown]), gap=gap)


def _repeated(encoded: EncodedHistories, rows: IntArray) -> EncodedHistories:
    """The histories numbered ``rows``, one after the other."""
    lengths = np.diff(encoded.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.repeat(encoded.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    sizes, first = encoded.num_events[rows], np.cumsum(encoded.num_events) - encoded.num_events
    before = np.cumsum(sizes) - sizes
    event = np.repeat(first[rows] - before, sizes) + np.arange(int(sizes.sum()))
    return EncodedHistories(
        input_ids=encoded.input_ids[flat],
        event_index=encoded.event_index[flat],
        field_index=encoded.field_index[flat],
        added_ids=encoded.added_ids[flat],
        offsets=offsets,
        num_events=encoded.num_events[rows],
        left_out=encoded.left_out[rows],
        when=encoded.when[rows],
        records=encoded.records[event],
        gap=encoded.gap[rows],
    )
