"""The text of an event, and each distinct part of it tokenized once.

The text of a history, piece by piece: what a template says in a vocabulary's words.

Each distinct piece of a history rendered once.

A piece is one chunk of a template with one word in it: ``after 3h``. `TextTokenCache` keeps its token
ids (style ``text``); `IdTokenCache` gives one unit id a field (style ``token``). Both answer the
same question, so the encoder above them does not know the style.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NoReturn, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from llm_influence.errors import TemplateError
from llm_influence.rendering.template import FIELDS, Chunk, Template
from llm_influence.rendering.time_words import gap_words, hour_words, times_words, weekday_words
from llm_influence.rendering.vocabulary import UNKNOWN, Vocabulary
from llm_influence.types import History, IntArray


class Wording:
    """A template in a vocabulary's words.

    Attributes:
        words: For each chunk of the event line, its words by code; ``[""]`` for a bare word.
    """

    def __init__(self, template: Template, vocabulary: Vocabulary) -> None:
        self._template, self._lexicon = template, vocabulary
        self._chunks = template.event_chunks
        self.words: list[Sequence[str]] = [
            field_words(vocabulary, template, chunk.field) if chunk.field else [""]
            for chunk in self._chunks
        ]

    def prompt(self, user: Mapping[str, str]) -> str:
        """The history line with the user's features in it."""
        chunks = self._template.history_chunks
        return " ".join(
            chunk.render(user.get(chunk.field, "") or UNKNOWN) if chunk.field else chunk.prefix
            for chunk in chunks
        )

    def events(self, history: History) -> Iterator[str]:
        """The line of each event, every chunk with its leading space.

        Raises:
            UnknownNameError: An item or behaviour is not in the vocabulary.
        """
        codes = self._lexicon.columns([history], times="times" in self._template.fields).codes
        for event in range(len(history)):
            yield "".join(
                self.piece(chunk, words[codes[chunk.field][event] if chunk.field else 0])
                for chunk, words in zip(self._chunks, self.words, strict=True)
            )

    def vocabulary(self) -> Iterator[str]:
        """Every piece that an event line can have, once: items and words never seen included."""
        for chunk, words in zip(self._chunks, self.words, strict=True):
            for word in words:
                yield self.piece(chunk, word)
        for field in self._template.added:
            yield from field_words(self._lexicon, self._template, field)

    @staticmethod
    def piece(chunk: Chunk, word: str) -> str:
        """A chunk as it stands in a text; nothing where its field has nothing to say."""
        return "" if chunk.field and not word else " " + chunk.render(word)


def field_words(vocabulary: Vocabulary, template: Template, field: str) -> Sequence[str]:
    """Words of a field by code, in the template's language. Empty words are not said."""
    if field == "behavior":
        return [_one_line(template.behaviors.get(name, name)) for name in vocabulary.behaviors]
    if field == "gap":
        return gap_words(template.language)
    if field == "hour":
        return hour_words(template.language)
    if field == "times":
        return times_words(template.language)
    if field == "weekday":
        return weekday_words(template.language)
    if field == "value":
        return vocabulary.values.words()
    ids = [_one_line(item) for item in vocabulary.catalogue.ids.to_pylist()]
    if field == "item":
        return ids
    texts = vocabulary.catalogue.texts
    return [_one_line(text) or item for text, item in zip(texts, ids, strict=True)]


def _one_line(words: str) -> str:
    """Single spaces alone: a tokenizer may join or strip others where two pieces meet."""
    return " ".join(words.split())


ANCHOR = "a"
"""A word put before a piece while it is tokenised alone, so that the piece's first token is the
one it gets in the middle of a text (byte-level and SentencePiece tokenizers mark the space)."""

SAMPLE = 8
"""Events put together once to see that the tokenizer cuts at spaces."""


class TokenCache(Protocol):
    """Token ids of every piece, in one flat buffer."""

    ids: IntArray
    """(P,) token ids of all pieces rendered so far."""
    fields: IntArray
    """(P,) field number of each token, -1 for a template's own words."""

    def lookup(self, slot: int, codes: IntArray) -> tuple[IntArray, IntArray]:
        """Starts and lengths in the buffer of the ``slot``-th chunk, with each code's word."""

    def longest_start(self, slot: int) -> int:
        """Length of the ``slot``-th chunk when its event has become a history's first one."""

    def prompt(self, user: Mapping[str, str]) -> IntArray:
        """Token ids that stand before the first event of a user's history."""


class TextTokenCache:
    """Style ``text``: pieces are words, tokenised by the backbone's own fast tokenizer.

    Raises:
        TemplateError: The tokenizer is slow (no offsets), or the template has no history line:
            a text must begin with something that belongs to no event.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, vocabulary: Vocabulary
    ) -> None:
        if not tokenizer.is_fast:
            raise TemplateError(
                f"the tokenizer {type(tokenizer).__name__} gives no character offsets",
                where="rendering.style",
                expected="a tokenizer of the tokenizers library",
                fix="use style 'token', or save the tokenizer in its fast form",
            )
        if template.added:
            raise TemplateError(
                f"template {template.name!r} adds {', '.join(template.added)} to the event's token",
                where="rendering.style",
                expected="style 'token': words of a text cannot be added to each other",
                fix="use style 'token', or write the fields into the event line",
            )
        if not template.history.strip():
            raise TemplateError(
                f"template {template.name!r} has no history line",
                where="rendering.template",
                expected="words before the first event, such as 'history:'",
                fix="choose another template for style 'text', or add a history line",
            )
        self._tokenizer = tokenizer
        self._template = template
        self._chunks = template.event_chunks
        self.wording = Wording(template, vocabulary)
        self._words = self.wording.words
        self._starts = [np.zeros(len(words), dtype=np.int64) for words in self._words]
        self._lengths = [np.full(len(words), -1, dtype=np.int64) for words in self._words]
        self._frames: dict[str, IntArray] = {}
        self.ids: IntArray = np.empty(0, dtype=np.int64)
        self.fields: IntArray = np.empty(0, dtype=np.int64)
        self._check_joints()

    def lookup(self, slot: int, codes: IntArray) -> tuple[IntArray, IntArray]:
        """See `TokenCache.lookup`; pieces met for the first time are tokenised now."""
        if self._chunks[slot].field is None:
            codes = np.zeros_like(codes)
        lengths = self._lengths[slot]
        found = lengths[codes]
        if len(found) and found.min() < 0:
            met = np.zeros(len(lengths), dtype=bool)
            met[codes] = True
            self._tokenise(slot, np.flatnonzero(met & (lengths < 0)))
            found = lengths[codes]
        return self._starts[slot][codes], found

    def longest_start(self, slot: int) -> int:
        """See `TokenCache.longest_start`: a gap then reads "start", all else stays."""
        if self._chunks[slot].field != "gap":
            return 0
        return int(self.lookup(slot, np.zeros(1, dtype=np.int64))[1][0])

    def prompt(self, user: Mapping[str, str]) -> IntArray:
        """See `TokenCache.prompt`: the start token, if the tokenizer has one, and the history line."""
        text = self.wording.prompt(user)
        if text not in self._frames:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            start = self._tokenizer.cls_token_id
            start = self._tokenizer.bos_token_id if start is None else start
            head = [] if start is None else [start]
            self._frames[text] = np.array(head + ids, dtype=np.int64)
        return self._frames[text]

    def _tokenise(self, slot: int, codes: IntArray) -> None:
        chunk, words = self._chunks[slot], self._words[slot]
        pieces = [self.wording.piece(chunk, words[code]) for code in codes]
        encoded = self._tokenizer(
            [ANCHOR + piece for piece in pieces],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
        )
        counts = [len(tokens) for tokens in encoded["input_ids"]]
        owner = np.repeat(np.arange(len(pieces)), counts)
        ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int64, len(owner))
        offsets = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
        spans = np.fromiter(offsets, np.int64, 2 * len(owner)).reshape(-1, 2) - len(ANCHOR)
        inside = spans[:, 1] > 0
        ids, spans, owner = ids[inside], spans[inside], owner[inside]
        merged = spans[:, 0] < 0
        if merged.any():
            self._refuse(pieces[owner[int(np.argmax(merged))]])
        word_lengths = np.array([len(words[code]) for code in codes], dtype=np.int64)
        lengths = np.bincount(owner, minlength=len(pieces))
        self._starts[slot][codes] = len(self.ids) + np.cumsum(lengths) - lengths
        self._lengths[slot][codes] = lengths
        self.ids = np.concatenate([self.ids, ids])
        self.fields = np.concatenate([self.fields, _fields_of(chunk, word_lengths[owner], spans)])

    def _check_joints(self) -> None:
        """Put a few events together and compare with their text tokenised whole."""
        text = self.wording.prompt({})
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        last = np.array([len(words) - 1 for words in self._words])
        picks = np.linspace(0, last, SAMPLE).astype(np.int64)  # (SAMPLE, slots)
        found = [self.lookup(slot, codes) for slot, codes in enumerate(picks.T)]
        for event, codes in enumerate(picks):
            for slot, chunk in enumerate(self._chunks):
                text += self.wording.piece(chunk, self._words[slot][codes[slot]])
                start, length = found[slot][0][event], found[slot][1][event]
                ids.extend(self.ids[start : start + length].tolist())
        whole = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids != list(whole):
            self._refuse(text)

    def _refuse(self, text: str) -> NoReturn:
        raise TemplateError(
            f"the tokenizer merges words of {text[:60]!r}",
            where=f"template {self._template.name!r}",
            expected="a tokenizer that never merges across a space",
            fix="use style 'token' with this backbone",
        )


def _fields_of(chunk: Chunk, word_lengths: IntArray, spans: IntArray) -> IntArray:
    """(T,) field number of tokens at ``spans`` of their piece: of those that touch the word.

    ``word_lengths`` has the length of each token's word; all other tokens have no field, -1.
    """
    if chunk.field is None:
        return np.full(len(spans), -1, dtype=np.int64)
    begin = 1 + len(chunk.prefix)  # 1: the leading space
    touches = (spans[:, 0] < begin + word_lengths) & (spans[:, 1] > begin)
    return np.where(touches, FIELDS.index(chunk.field), -1)


class IdTokenCache:
    """Style ``token``: one unit a field.

    Unit ids are laid out block after block,

        start | behaviours | gaps | values | hours | weekdays | times | user features | items

    items last, so that a catalogue can grow without moving anything. Each user feature has a block.
    Hours, weekdays and times have units only where the template says them.
    """

    def __init__(self, template: Template, vocabulary: Vocabulary) -> None:
        self._template, self._lexicon = template, vocabulary
        self._slots = [chunk.field for chunk in template.event_chunks if chunk.field]
        if "text" in self._slots:
            raise TemplateError(
                "{text} is a field of style 'text'",
                where=f"template {template.name!r}",
                expected="{item}, whose unit already carries the item's text",
                fix="use {item}, or rendering.style: text",
            )
        blocks: dict[str, Sequence[str]] = {
            "start": ["history"],
            "behavior": field_words(vocabulary, template, "behavior"),
            "gap": field_words(vocabulary, template, "gap"),
            "value": [UNKNOWN, *vocabulary.values.words()[1:]],
            **{
                field: field_words(vocabulary, template, field)
                for field in ("hour", "weekday", "times")
                if field in template.fields
            },
            **{f"user.{name}": [UNKNOWN, *words] for name, words in vocabulary.features.items()},
            "item": vocabulary.catalogue.texts,
        }
        self._first = dict(
            zip(blocks, np.cumsum([0, *(len(words) for words in blocks.values())]), strict=False)
        )
        self._sizes = {block: len(words) for block, words in blocks.items()}
        self.words: list[str] = [
            _unit_phrase(block, word) for block, words in blocks.items() for word in words
        ]
        """(U,) what each unit means, for the language model that gives units their vectors."""
        self.ids: IntArray = np.arange(len(self.words), dtype=np.int64)
        self.fields: IntArray = np.full(len(self.words), -1, dtype=np.int64)
        for field in set(self._slots):
            first = self._first[field]
            length = len(blocks[field])
            self.fields[first : first + length] = FIELDS.index(field)

    @property
    def first_item(self) -> int:
        """Unit id of item 0."""
        return int(self._first["item"])

    def units_of(self, field: str) -> range:
        """Unit ids of a field's words, whether it has a place in the line or is added."""
        return range(self._first[field], self._first[field] + self._sizes[field])

    def lookup(self, slot: int, codes: IntArray) -> tuple[IntArray, IntArray]:
        """See `TokenCache.lookup`: one unit each."""
        first = self._first[self._slots[slot]]
        return first + codes.astype(np.int64), np.ones(len(codes), dtype=np.int64)

    def added(self, codes: Mapping[str, IntArray]) -> IntArray:
        """(S, A) units of the template's added fields, from (S,) codes of every field."""
        fields = self._template.added
        columns = [self._first[field] + codes[field].astype(np.int64) for field in fields]
        events = len(codes["item"])
        return np.stack(columns, axis=1) if columns else np.empty((events, 0), dtype=np.int64)

    def longest_start(self, slot: int) -> int:
        """See `TokenCache.longest_start`: every unit is one token long."""
        return 1

    def prompt(self, user: Mapping[str, str]) -> IntArray:
        """See `TokenCache.prompt`: the start unit and one unit a user feature of the template."""
        units = [self._first["start"]]
        for name in self._template.user_features:
            code = self._lexicon.feature_code(name, user.get(name, ""))
            units.append(self._first[f"user.{name}"] + code)
        return np.array(units, dtype=np.int64)


def _unit_phrase(block: str, word: str) -> str:
    """What a unit means in words that a language model has read before."""
    if block in {"value", "gap", "hour"}:
        return f"{block} {word}"
    if block.startswith("user."):
        return f"{block.removeprefix('user.')} {word}"
    return word
