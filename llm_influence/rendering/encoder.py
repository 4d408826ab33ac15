"""Encoder: histories to tokens, the map from tokens to events and fields, and padded tensors.

The encoder looks up every phrase of every event in the token cache and copies its ids into one flat
array. No text is built and nothing is tokenised twice. The result equals the tokens of each whole
text, which `Encoder.render` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_influence.errors import DataError, TemplateError, check_type
from llm_influence.rendering.template import USER_PREFIX, Template
from llm_influence.rendering.time_words import query_codes
from llm_influence.rendering.token_cache import IdTokenCache, TextTokenCache, TokenCache
from llm_influence.rendering.vocabulary import EventColumns, Vocabulary
from llm_influence.types import History, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class EncodedHistories:
    """N rendered histories, one after the other, T tokens in all.

    Attributes:
        input_ids: (T,) token ids (style ``text``) or embedding ids (style ``token``).
        event_index: (T,) the token's event within its history, -1 for prompt tokens.
        field_index: (T,) the token's field (`FIELDS`), -1 for a template's own words.
        added_ids: (T, A) embedding ids of the template's added fields at each event's last token,
            -1 elsewhere.
        offsets: (N + 1,) begin and end of each history.
        num_events: (N,) number of events that were kept.
        left_out: (N,) number of older events that did not fit and were left out whole.
        when: (N,) gap code from the last event to the query time, 0 where unknown.
        records: (S, 5) the S events of all histories as numbers, see `event_records`.
        gap: (N,) seconds from the last event to the query time, -1 where unknown.
    """

    input_ids: IntArray
    event_index: IntArray
    field_index: IntArray
    added_ids: IntArray
    offsets: IntArray
    num_events: IntArray
    left_out: IntArray
    when: IntArray
    records: IntArray
    gap: IntArray

    def __len__(self) -> int:
        """Number of histories N."""
        return len(self.num_events)


def join(parts: Sequence[EncodedHistories]) -> EncodedHistories:
    """The histories of all ``parts``, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in fields(EncodedHistories) if field.name != "offsets"]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return EncodedHistories(offsets=np.concatenate([[0], np.cumsum(lengths)]), **columns)


class Encoder:
    """Encodes histories for one backbone, template and vocabulary.

    Args:
        template: What is written about a history.
        vocabulary: Codes and words of the fields.
        style: ``token`` (one embedding a field) or ``text`` (words).
        tokenizer: The backbone's tokenizer; needed for style ``text``.
        max_events: Number of most recent events that are kept.
        max_tokens: Largest number of tokens of a history, prompt included.

    Raises:
        TemplateError: The style does not fit the tokenizer or the template.
    """

    def __init__(
        self,
        template: Template,
        vocabulary: Vocabulary,
        *,
        style: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_events: int = 50,
        max_tokens: int = 512,
    ) -> None:
        self._again = partial(
            Encoder, style=style, tokenizer=tokenizer, max_events=max_events, max_tokens=max_tokens
        )
        self.template, self.vocabulary, self.style = template, vocabulary, style
        self.max_events, self.max_tokens = max_events, max_tokens
        self.tokenizer = tokenizer
        self.token_cache: TokenCache
        if style == "token":
            self.token_cache = IdTokenCache(template, vocabulary)
        elif tokenizer is not None:
            self.token_cache = TextTokenCache(tokenizer, template, vocabulary)
        else:
            found, expected = "no tokenizer was given", "the backbone's tokenizer"
            fix = "pass tokenizer=, or use style 'token'"
            raise TemplateError(found, where="Encoder(style='text')", expected=expected, fix=fix)
        chunks = template.event_chunks
        self._slots = [c.field or "item" for c in chunks if c.field or style == "text"]
        self._needs_times = "times" in template.fields

    def with_vocabulary(self, vocabulary: Vocabulary) -> Encoder:
        """The same encoder over another vocabulary."""
        return self._again(self.template, vocabulary)

    def with_template(self, template: Template) -> Encoder:
        """The same encoder with other words for the same fields; embedding ids stay.

        Raises:
            TemplateError: The templates have different fields or user features.
        """
        ours, others = _field_list(self.template), _field_list(template)
        if ours != others:
            raise TemplateError(
                f"template {template.name!r} has the fields {others}",
                where=f"template beside {self.template.name!r}",
                expected=f"the same fields: {ours}",
                fix="choose a template with the same fields, or write one",
            )
        return self._again(template, self.vocabulary)

    @property
    def longest(self) -> int:
        """Largest number of tokens that a history can have."""
        if self.style == "text":
            return self.max_tokens
        tokens = len(self.token_cache.prompt({})) + self.max_events * len(self._slots)
        return min(self.max_tokens, tokens)

    def trim(self, history: History) -> History:
        """The events of ``history`` that `encode` keeps: whole events, the most recent ones."""
        encoded = self.encode([history])
        return history.keep(slice(int(encoded.left_out[0]), None))

    def encode(self, histories: Sequence[History]) -> EncodedHistories:
        """Encode N histories.

        Raises:
            UnknownNameError: An item or behaviour is not in the vocabulary.
            TemplateError: An event has no token, or more tokens than ``max_tokens``.
        """
        for history in histories:
            check_type(DataError, "history", history, History, expected="a History: log[user_id]")
        prompts = [self.token_cache.prompt(history.user) for history in histories]
        prompt_lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        last, most = slice(-self.max_events, None), self.max_events
        recent = [h.keep(last) if len(h) > most else h for h in histories]
        columns = self.vocabulary.columns(recent, times=self._needs_times)
        dropped = self._overlong(histories, columns, self.max_tokens - prompt_lengths)
        if dropped.any():  # gaps and counts change where a history now begins
            recent = [h.keep(slice(n, None)) for h, n in zip(recent, dropped, strict=True)]
            columns = self.vocabulary.columns(recent, times=self._needs_times)
        total = np.array([len(history) for history in histories], dtype=np.int64)
        encoded = self._assemble(prompts, columns, recent)
        return replace(encoded, left_out=total - columns.lengths)

    def render(self, history: History) -> str:
        """The whole text of a history in style ``text``, without truncation.

        Raises:
            TemplateError: The style is ``token``, which has no text.
        """
        if not isinstance(self.token_cache, TextTokenCache):
            found, fix = "style 'token' has no text", "make an Encoder with style='text'"
            raise TemplateError(found, where="Encoder.render", expected="style 'text'", fix=fix)
        wording = self.token_cache.wording
        return wording.prompt(history.user) + "".join(wording.events(history))

    def _overlong(
        self, histories: Sequence[History], columns: EventColumns, room: IntArray
    ) -> IntArray:
        """(N,) number of each history's oldest events that exceed its ``room`` of tokens."""
        costs = np.zeros(int(columns.lengths.sum()), dtype=np.int64)
        for slot, field in enumerate(self._slots):
            lengths = self.token_cache.lookup(slot, columns.codes[field])[1]
            costs += np.maximum(lengths, self.token_cache.longest_start(slot))
        ends = np.cumsum(columns.lengths)
        total = np.concatenate([[0], np.cumsum(costs)])
        suffix = np.repeat(total[ends], columns.lengths) - total[:-1]  # cost from here to the end
        owner = np.repeat(np.arange(len(columns.lengths)), columns.lengths)
        too_long = costs > room[owner]
        if too_long.any():
            place = int(np.argmax(too_long))
            event = place - int(ends[owner[place]] - columns.lengths[owner[place]])
            raise TemplateError(
                f"one event takes {costs[place]} tokens, the context holds {room[owner[place]]}",
                where=f"user {histories[owner[place]].user_id!r}, kept event {event}",
                expected="every event to fit into the context",
                fix="shorten the item text or the template, or raise rendering.max_tokens",
            )
        return np.bincount(owner[suffix > room[owner]], minlength=len(columns.lengths))

    def _assemble(
        self, prompts: Sequence[IntArray], columns: EventColumns, histories: Sequence[History]
    ) -> EncodedHistories:
        """Copy prompts and phrases into one flat array, in reading order."""
        spans = [self.token_cache.lookup(i, columns.codes[f]) for i, f in enumerate(self._slots)]
        starts = np.stack([start for start, _ in spans], axis=1)  # (S, slots)
        lengths = np.stack([length for _, length in spans], axis=1)
        per_event = lengths.sum(axis=1)
        if len(per_event) and per_event.min() == 0:
            found, expected = "an event has no token at all", "at least one word of every event"
            fix = "add {behavior} or {item} to the event line"
            raise TemplateError(
                found, where=f"template {self.template.name!r}", expected=expected, fix=fix
            )
        flat = _ranges(starts.ravel(), lengths.ravel())
        place_in_history = _ranges(np.zeros_like(columns.lengths), columns.lengths)
        event_of_token = np.repeat(place_in_history, per_event)

        prompt_lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        history_of_event = np.repeat(np.arange(len(prompts)), columns.lengths)
        body = np.bincount(history_of_event, weights=per_event, minlength=len(prompts))
        offsets = np.concatenate([[0], np.cumsum(prompt_lengths + body.astype(np.int64))])
        is_prompt = np.zeros(offsets[-1], dtype=bool)
        is_prompt[_ranges(offsets[:-1], prompt_lengths)] = True

        def fill(prompt: IntArray | int, events: IntArray) -> IntArray:
            column = np.empty(len(is_prompt), dtype=np.int64)
            column[is_prompt], column[~is_prompt] = prompt, events
            return column

        last = np.flatnonzero(~is_prompt)[np.cumsum(per_event) - 1]  # of each event
        added_ids = np.full((len(is_prompt), len(self.template.added)), -1, dtype=np.int64)
        if isinstance(self.token_cache, IdTokenCache):
            added_ids[last] = self.token_cache.added(columns.codes)
        prompt_ids = np.concatenate([*prompts, np.empty(0, dtype=np.int64)])
        return EncodedHistories(
            input_ids=fill(prompt_ids, self.token_cache.ids[flat]),
            event_index=fill(-1, event_of_token),
            field_index=fill(-1, self.token_cache.fields[flat]),
            added_ids=added_ids,
            offsets=offsets,
            num_events=columns.lengths,
            left_out=np.zeros_like(columns.lengths),
            when=_when(histories),
            records=event_records(columns, histories),
            gap=event_gaps(histories),
        )


def _when(histories: Sequence[History]) -> IntArray:
    """(N,) gap codes from each history's last event to its query time."""
    last = [int(h.timestamps[-1]) if len(h) else 0 for h in histories]
    query = [h.query_time or 0 for h in histories]
    known = [len(h) > 0 and h.query_time is not None for h in histories]
    return query_codes(np.array(last, np.int64), np.array(query, np.int64), np.array(known, bool))


def event_gaps(histories: Sequence[History]) -> IntArray:
    """(N,) seconds from each history's last event to its query time, -1 where unknown."""
    known = (h.query_time is not None and len(h) > 0 for h in histories)
    return np.array(
        [
            int(h.query_time) - int(h.timestamps[-1]) if k else -1  # type: ignore[arg-type]
            for h, k in zip(histories, known, strict=True)
        ],
        dtype=np.int64,
    )


RECORD = ("item", "behavior", "value", "age", "distance")
"""Columns of event records: item code (`NO_ITEM` where there is no event), behaviour code, value
bin, seconds to the last event of the history, number of later events of the history."""
NO_ITEM = -1


def event_records(columns: EventColumns, histories: Sequence[History]) -> IntArray:
    """(S, 5) records of all events of N histories, one after the other."""
    lengths = columns.lengths
    moments = np.concatenate([np.empty(0, np.int64), *(h.timestamps for h in histories)])
    records = np.empty((int(lengths.sum()), len(RECORD)), dtype=np.int64)
    for place, name in enumerate(RECORD[:3]):
        records[:, place] = columns.codes[name]
    last = (np.cumsum(lengths) - 1).clip(0)
    if len(records):
        records[:, 3] = np.repeat(moments[last], lengths) - moments
    records[:, 4] = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(records)) - 1
    return records


def _field_list(template: Template) -> str:
    """Fields of the event line, added fields and user features, sorted."""
    added = [f"{name} (added)" for name in sorted(template.added)]
    features = [f"{USER_PREFIX}{name}" for name in sorted(set(template.user_features))]
    return ", ".join([*sorted(set(template.line_fields)), *added, *features])


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """``start, start + 1, ...`` for each pair of start and length, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


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
        records: (B, E, 5) records of the events (`RECORD`), item `NO_ITEM` beyond a history's
            events. Age and distance stay those of the whole history when events are removed.
        gap: (B,) seconds from the last event to the query time, -1 where unknown.
    """

    input_ids: Tensor
    attention_mask: Tensor
    event_index: Tensor
    field_index: Tensor
    added_ids: Tensor
    ends: Tensor
    num_events: Tensor
    when: Tensor
    records: Tensor
    gap: Tensor

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

    def event_means(self, token_values: Tensor) -> Tensor:
        """(B, E) means of (B, T) token values by event; 0 beyond a history's events."""
        ones = (self.event_index >= 0).to(token_values)
        return self.event_sums(token_values * ones)[0] / self.event_sums(ones)[0].clamp(min=1)

    def event_sums(self, token_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E) sums of (B, T) token values by event, and (B,) the sum of the prompt.

        Token values must be zero at padding; sums are 0 beyond a history's events.
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
        records=torch.from_numpy(_by_event(encoded, rows)),
        gap=torch.from_numpy(encoded.gap[rows]),
    )


def _by_event(encoded: EncodedHistories, rows: IntArray) -> IntArray:
    """(B, E, 5) records of the events of some histories."""
    sizes = encoded.num_events[rows]
    first = (np.cumsum(encoded.num_events) - encoded.num_events)[rows]
    places = np.arange(int(sizes.max(initial=0)))
    real = places < sizes[:, None]
    records = np.zeros((*real.shape, len(RECORD)), dtype=np.int64)
    records[..., 0] = NO_ITEM
    records[real] = encoded.records[(first[:, None] + places)[real]]
    return records


def _ends(event_index: IntArray, real: np.ndarray, num_events: IntArray) -> IntArray:
    """(B, E + 1) last token of the prompt and of each event."""
    following = np.concatenate([event_index[:, 1:], np.full((len(event_index), 1), -2)], axis=1)
    following[:, :-1][~real[:, 1:]] = -2  # padding follows: the history ends here
    row, place = np.nonzero(real & (following != event_index))
    ends = np.zeros((len(event_index), int(num_events.max(initial=0)) + 1), dtype=np.int64)
    ends[row, event_index[row, place] + 1] = place
    return ends
