"""Histories to tokens, with the one map from tokens to events and fields that everything uses.

The encoder looks every piece of every event up in the piece cache and copies the pieces into one
flat array by index: no text is built and nothing is tokenised twice. The result is the same as
tokenising each whole text (`Encoder.render` gives that text; a test holds the two together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from transformers import PreTrainedTokenizerBase

from llm_influence.errors import TemplateError
from llm_influence.rendering.template import Template
from llm_influence.rendering.time_words import query_codes
from llm_influence.rendering.token_cache import IdTokenCache, TextTokenCache, TokenCache
from llm_influence.rendering.vocabulary import EventColumns, Vocabulary
from llm_influence.types import History, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class EncodedHistories:
    """N rendered histories, one after the other, T tokens in all.

    Attributes:
        input_ids: (T,) token ids (style ``text``) or unit ids (style ``token``).
        event_index: (T,) the token's event within its history, -1 for prompt tokens.
        field_index: (T,) the token's field (`FIELDS`), -1 for a template's own words.
        added_ids: (T, A) units of the template's added fields at each event's last token, -1
            elsewhere.
        offsets: (N + 1,) where each history begins and ends.
        num_events: (N,) events that were kept.
        left_out: (N,) older events that did not fit and were left out whole.
        when: (N,) gap code from the last event to the moment of the question, 0 where unknown.
    """

    input_ids: IntArray
    event_index: IntArray
    field_index: IntArray
    added_ids: IntArray
    offsets: IntArray
    num_events: IntArray
    left_out: IntArray
    when: IntArray

    def __len__(self) -> int:
        """Number of histories N."""
        return len(self.num_events)


def join(parts: Sequence[EncodedHistories]) -> EncodedHistories:
    """The histories of all ``parts``, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(EncodedHistories)
        if field.name != "offsets"
    }
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return EncodedHistories(offsets=np.concatenate([[0], np.cumsum(lengths)]), **columns)


class Encoder:
    """Renders histories for one backbone, template and vocabulary.

    Args:
        template: What is written.
        vocabulary: The words.
        style: ``token`` (one unit a field) or ``text`` (the words themselves).
        tokenizer: The backbone's tokenizer; needed for style ``text``.
        max_events: Most recent events kept.
        max_tokens: Most tokens of a history, prompt included.
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
        self.template, self.vocabulary, self.style = template, vocabulary, style
        self.max_events, self.max_tokens = max_events, max_tokens
        self.tokenizer = tokenizer
        self.token_cache: TokenCache
        if style == "token":
            self.token_cache = IdTokenCache(template, vocabulary)
        elif tokenizer is not None:
            self.token_cache = TextTokenCache(tokenizer, template, vocabulary)
        else:
            raise TemplateError(
                "no tokenizer was given",
                where="Encoder(style='text')",
                expected="the backbone's tokenizer",
                fix="pass tokenizer=, or use style 'token'",
            )
        chunks = template.event_chunks
        self._slots = [c.field or "item" for c in chunks if c.field or style == "text"]

    def with_vocabulary(self, vocabulary: Vocabulary) -> Encoder:
        """The same encoder over another vocabulary."""
        return self._with(self.template, vocabulary)

    def with_template(self, template: Template) -> Encoder:
        """The same encoder in other words; ids of units stay if the fields are the same.

        Raises:
            TemplateError: The templates say different fields, or read different user features.
        """
        ours, others = (_said(one) for one in (self.template, template))
        if ours != others:
            raise TemplateError(
                f"template {template.name!r} says {_listed(others)}",
                where=f"beside template {self.template.name!r}",
                expected=f"the same fields: {_listed(ours)}",
                fix="choose a template of the same fields, or write one",
            )
        return self._with(template, self.vocabulary)

    def _with(self, template: Template, vocabulary: Vocabulary) -> Encoder:
        return Encoder(
            template,
            vocabulary,
            style=self.style,
            tokenizer=self.tokenizer,
            max_events=self.max_events,
            max_tokens=self.max_tokens,
        )

    def trim(self, history: History) -> History:
        """The events of ``history`` that `encode` keeps: whole events, the most recent ones."""
        encoded = self.encode([history])
        return history.keep(slice(int(encoded.left_out[0]), None))

    def encode(self, histories: Sequence[History]) -> EncodedHistories:
        """Render ``histories``.

        Raises:
            UnknownNameError: An item or behaviour is not in the vocabulary.
            TemplateError: A single event does not fit ``max_tokens``, or says nothing at all.
        """
        prompts = [self.token_cache.prompt(history.user) for history in histories]
        frame_lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        recent = [
            history.keep(slice(-self.max_events, None))
            if len(history) > self.max_events
            else history
            for history in histories
        ]
        columns = self._columns(recent)
        dropped = self._overlong(histories, columns, self.max_tokens - frame_lengths)
        if dropped.any():  # gaps change where a history now begins: measure them again
            recent = [h.keep(slice(n, None)) for h, n in zip(recent, dropped, strict=True)]
            columns = self._columns(recent)
        total = np.array([len(history) for history in histories], dtype=np.int64)
        return self._assemble(prompts, columns, total - columns.lengths, _when(recent))

    def render(self, history: History) -> str:
        """The whole text that `encode` renders (style ``text``), without truncation.

        Raises:
            TemplateError: The style is ``token``, which has no text.
        """
        if not isinstance(self.token_cache, TextTokenCache):
            raise TemplateError(
                "style 'token' has no text",
                where="Encoder.render",
                expected="style 'text'",
                fix="make an Encoder with style='text'",
            )
        wording = self.token_cache.wording
        return wording.prompt(history.user) + "".join(wording.events(history))

    def _columns(self, histories: Sequence[History]) -> EventColumns:
        return self.vocabulary.columns(histories, times="times" in self.template.fields)

    def _overlong(
        self, histories: Sequence[History], columns: EventColumns, room: IntArray
    ) -> IntArray:
        """(N,) how many of each history's oldest events do not fit into its ``room`` of tokens."""
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
        self,
        prompts: Sequence[IntArray],
        columns: EventColumns,
        left_out: IntArray,
        when: IntArray,
    ) -> EncodedHistories:
        """Copy prompts and pieces into one flat array, in reading order."""
        found = [self.token_cache.lookup(i, columns.codes[f]) for i, f in enumerate(self._slots)]
        starts = np.stack([start for start, _ in found], axis=1)  # (S, slots)
        lengths = np.stack([length for _, length in found], axis=1)
        per_event = lengths.sum(axis=1)
        self._check_silent(per_event)
        flat = _ranges(starts.ravel(), lengths.ravel())
        place_in_history = _ranges(np.zeros_like(columns.lengths), columns.lengths)
        event_of_token = np.repeat(place_in_history, per_event)

        frame_lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        history_of_event = np.repeat(np.arange(len(prompts)), columns.lengths)
        body = np.bincount(history_of_event, weights=per_event, minlength=len(prompts))
        offsets = np.concatenate([[0], np.cumsum(frame_lengths + body.astype(np.int64))])
        is_frame = np.zeros(offsets[-1], dtype=bool)
        is_frame[_ranges(offsets[:-1], frame_lengths)] = True

        def fill(prompt: IntArray | int, events: IntArray) -> IntArray:
            column = np.empty(len(is_frame), dtype=np.int64)
            column[is_frame], column[~is_frame] = prompt, events
            return column

        last = np.flatnonzero(~is_frame)[np.cumsum(per_event) - 1]  # of each event
        added_ids = np.full((len(is_frame), len(self.template.added)), -1, dtype=np.int64)
        if isinstance(self.token_cache, IdTokenCache):
            added_ids[last] = self.token_cache.added(columns.codes)
        frame_ids = np.concatenate([*prompts, np.empty(0, dtype=np.int64)])
        return EncodedHistories(
            input_ids=fill(frame_ids, self.token_cache.ids[flat]),
            event_index=fill(-1, event_of_token),
            field_index=fill(-1, self.token_cache.fields[flat]),
            added_ids=added_ids,
            offsets=offsets,
            num_events=columns.lengths,
            left_out=left_out,
            when=when,
        )

    def _check_silent(self, tokens_per_event: IntArray) -> None:
        if len(tokens_per_event) and tokens_per_event.min() == 0:
            raise TemplateError(
                "an event is rendered to no token at all",
                where=f"template {self.template.name!r}",
                expected="at least one word of every event",
                fix="add {behavior} or {item} to the event line",
            )


def _when(histories: Sequence[History]) -> IntArray:
    """(N,) gap codes from each history's last event to the moment of its question."""
    last = [int(h.timestamps[-1]) if len(h) else 0 for h in histories]
    asked = [h.query_time or 0 for h in histories]
    known = [len(h) > 0 and h.query_time is not None for h in histories]
    return query_codes(np.array(last, np.int64), np.array(asked, np.int64), np.array(known, bool))


def _said(template: Template) -> tuple[set[str], set[str], set[str]]:
    """Fields of the event line, fields added to its token, user features."""
    in_line = {chunk.field for chunk in template.event_chunks if chunk.field}
    return in_line, set(template.added), set(template.user_features)


def _listed(said: tuple[set[str], set[str], set[str]]) -> str:
    in_line, added, features = (sorted(names) for names in said)
    return ", ".join([*in_line, *(f"{n} (added)" for n in added), *(f"user.{n}" for n in features)])


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """``start, start + 1, ...`` for each pair of start and length, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
