"""Texts of events, and the token ids of each distinct part of them.

A phrase is one chunk of a template with one word in it: ``after 3h``. `TextTokenCache` (style
``text``) keeps the token ids of every phrase. `IdTokenCache` (style ``token``) gives each field one
id of an embedding table. The encoder uses both in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NoReturn, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from llm_influence.errors import TemplateError
from llm_influence.rendering.template import FIELDS, USER_PREFIX, Chunk, Template
from llm_influence.rendering.time_words import gap_words, hour_words, times_words, weekday_words
from llm_influence.rendering.vocabulary import UNKNOWN, Vocabulary
from llm_influence.types import History, IntArray

ANCHOR = "a"
"""A word before a phrase while the phrase is tokenised alone: its first token is then the same as
inside a text (byte-level and SentencePiece tokenizers mark the space)."""
SAMPLE = 8
"""Events that are assembled once to check that the tokenizer cuts at spaces."""


class Wording:
    """The texts that a template and a vocabulary give."""

    def __init__(self, template: Template, vocabulary: Vocabulary) -> None:
        self._template, self._vocabulary = template, vocabulary
        self._chunks = template.event_chunks
        self.words: list[Sequence[str]] = [
            field_words(vocabulary, template, chunk.field) if chunk.field else [""]
            for chunk in self._chunks
        ]
        """For each chunk of the event line, its words by code; ``[""]`` for a bare word."""

    def prompt(self, user: Mapping[str, str]) -> str:
        """The history line with the user's features."""
        return " ".join(
            chunk.render(user.get(chunk.field, "") or UNKNOWN) if chunk.field else chunk.prefix
            for chunk in self._template.history_chunks
        )

    def events(self, history: History) -> Iterator[str]:
        """The line of each event; every chunk begins with a space."""
        codes = self._vocabulary.columns([history], times="times" in self._template.fields).codes
        for event in range(len(history)):
            yield "".join(
                self.phrase(chunk, words[codes[chunk.field][event] if chunk.field else 0])
                for chunk, words in zip(self._chunks, self.words, strict=True)
            )

    def phrases(self) -> Iterator[str]:
        """Every phrase that an event line can have, and every word of an added field."""
        for chunk, words in zip(self._chunks, self.words, strict=True):
            for word in words:
                yield self.phrase(chunk, word)
        for field in self._template.added:
            yield from field_words(self._vocabulary, self._template, field)

    @staticmethod
    def phrase(chunk: Chunk, word: str) -> str:
        """A chunk with its word, as in a text; empty if the field has no word."""
        return "" if chunk.field and not word else " " + chunk.render(word)


def field_words(vocabulary: Vocabulary, template: Template, field: str) -> Sequence[str]:
    """Words of a field by code, in the template's language; an empty word is not written."""
    if field == "behavior":
        return [_one_line(template.behaviors.get(name, name)) for name in vocabulary.behaviors]
    if field == "value":
        return vocabulary.values.words()
    times = {"gap": gap_words, "hour": hour_words, "weekday": weekday_words, "times": times_words}
    if field in times:
        return times[field](template.language)
    ids = [_one_line(item) for item in vocabulary.catalogue.ids.to_pylist()]
    if field == "item":
        return ids
    texts = vocabulary.catalogue.texts
    return [_one_line(text) or item for text, item in zip(texts, ids, strict=True)]


def _one_line(words: str) -> str:
    """Words with single spaces: a tokenizer may join or strip others where two phrases meet."""
    return " ".join(words.split())


class TokenCache(Protocol):
    """Token ids of all phrases, in one flat buffer."""

    ids: IntArray
    """(P,) token ids of the phrases rendered so far."""
    fields: IntArray
    """(P,) field number of each token, -1 for a template's own words."""

    def lookup(self, slot: int, codes: IntArray) -> tuple[IntArray, IntArray]:
        """Starts and lengths in the buffer of chunk number ``slot`` with the word of each code."""

    def longest_start(self, slot: int) -> int:
        """Length of chunk number ``slot`` in an event that becomes the first of its history."""

    def prompt(self, user: Mapping[str, str]) -> IntArray:
        """Token ids before the first event of a user's history."""


class TextTokenCache:
    """Style ``text``: phrases are tokenised by the backbone's own fast tokenizer.

    Raises:
        TemplateError: The tokenizer is slow (no offsets) or merges across spaces, or the template
            adds fields to tokens or has no history line.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, vocabulary: Vocabulary
    ) -> None:
        if not tokenizer.is_fast:
            found = f"the tokenizer {type(tokenizer).__name__} gives no character offsets"
            expected = "a tokenizer of the tokenizers library"
            fix = "use style 'token', or save the tokenizer in its fast form"
            raise TemplateError(found, where="rendering.style", expected=expected, fix=fix)
        if template.added:
            raise TemplateError(
                f"template {template.name!r} adds {', '.join(template.added)} to the event's token",
                where="rendering.style",
                expected="style 'token': words of a text cannot be added to each other",
                fix="use style 'token', or write the fields into the event line",
            )
        if not template.history.strip():
            found = f"template {template.name!r} has no history line"
            expected = "words before the first event, such as 'history:'"
            fix = "choose another template for style 'text', or add a history line"
            raise TemplateError(found, where="rendering.template", expected=expected, fix=fix)
        self._tokenizer, self._template = tokenizer, template
        self._chunks = template.event_chunks
        self.wording = Wording(template, vocabulary)
        self._words = self.wording.words
        self._starts = [np.zeros(len(words), dtype=np.int64) for words in self._words]
        self._lengths = [np.full(len(words), -1, dtype=np.int64) for words in self._words]
        self._prompts: dict[str, IntArray] = {}
        self.ids: IntArray = np.empty(0, dtype=np.int64)
        self.fields: IntArray = np.empty(0, dtype=np.int64)
        self._check_joints()

    def lookup(self, slot: int, codes: IntArray) -> tuple[IntArray, IntArray]:
        """See `TokenCache.lookup`; new phrases are tokenised now."""
        if self._chunks[slot].field is None:
            codes = np.zeros_like(codes)
        lengths = self._lengths[slot]
        if len(codes) and lengths[codes].min() < 0:
            used = np.zeros(len(lengths), dtype=bool)
            used[codes] = True
            self._tokenise(slot, np.flatnonzero(used & (lengths < 0)))
        return self._starts[slot][codes], lengths[codes]

    def longest_start(self, slot: int) -> int:
        """See `TokenCache.longest_start`: the gap becomes "start", all else stays."""
        if self._chunks[slot].field != "gap":
            return 0
        return int(self.lookup(slot, np.zeros(1, dtype=np.int64))[1][0])

    def prompt(self, user: Mapping[str, str]) -> IntArray:
        """See `TokenCache.prompt`: the tokenizer's start token, if any, and the history line."""
        text = self.wording.prompt(user)
        if text not in self._prompts:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            start = self._tokenizer.cls_token_id
            start = self._tokenizer.bos_token_id if start is None else start
            head = [] if start is None else [start]
            self._prompts[text] = np.array(head + ids, dtype=np.int64)
        return self._prompts[text]

    def _tokenise(self, slot: int, codes: IntArray) -> None:
        chunk, words = self._chunks[slot], self._words[slot]
        phrases = [self.wording.phrase(chunk, words[code]) for code in codes]
        encoded = self._tokenizer(
            [ANCHOR + phrase for phrase in phrases],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
        )
        counts = [len(tokens) for tokens in encoded["input_ids"]]
        owner = np.repeat(np.arange(len(phrases)), counts)
        ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int64, len(owner))
        offsets = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
        spans = np.fromiter(offsets, np.int64, 2 * len(owner)).reshape(-1, 2) - len(ANCHOR)
        inside = spans[:, 1] > 0
        ids, spans, owner = ids[inside], spans[inside], owner[inside]
        merged = spans[:, 0] < 0
        if merged.any():
            self._refuse(phrases[owner[int(np.argmax(merged))]])
        word_lengths = np.array([len(words[code]) for code in codes], dtype=np.int64)
        lengths = np.bincount(owner, minlength=len(phrases))
        self._starts[slot][codes] = len(self.ids) + np.cumsum(lengths) - lengths
        self._lengths[slot][codes] = lengths
        self.ids = np.concatenate([self.ids, ids])
        self.fields = np.concatenate([self.fields, _fields_of(chunk, word_lengths[owner], spans)])

    def _check_joints(self) -> None:
        """Assemble a few events and compare them with the tokens of their whole text."""
        text = self.wording.prompt({})
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        last = np.array([len(words) - 1 for words in self._words])
        picks = np.linspace(0, last, SAMPLE).astype(np.int64)  # (SAMPLE, slots)
        spans = [self.lookup(slot, codes) for slot, codes in enumerate(picks.T)]
        for event, codes in enumerate(picks):
            for slot, chunk in enumerate(self._chunks):
                text += self.wording.phrase(chunk, self._words[slot][codes[slot]])
                start, length = spans[slot][0][event], spans[slot][1][event]
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
    """(T,) field number of tokens whose (T, 2) spans in the phrase touch its word, else -1."""
    if chunk.field is None:
        return np.full(len(spans), -1, dtype=np.int64)
    begin = 1 + len(chunk.prefix)  # 1: the leading space
    touches = (spans[:, 0] < begin + word_lengths) & (spans[:, 1] > begin)
    return np.where(touches, FIELDS.index(chunk.field), -1)


class IdTokenCache:
    """Style ``token``: one embedding id a field.

    Ids are numbered block after block,

        start | behaviours | gaps | values | hours | weekdays | times | user features | items

    with the items last, so that a growing catalogue moves no other id. Each user feature is a
    block. Hours, weekdays and times have ids only if the template uses them.
    """

    def __init__(self, template: Template, vocabulary: Vocabulary) -> None:
        self._template, self._vocabulary = template, vocabulary
        self._slots = template.line_fields
        if "text" in self._slots:
            raise TemplateError(
                "{text} is a field of style 'text'",
                where=f"template {template.name!r}",
                expected="{item}, whose embedding is made from the item's text",
                fix="use {item}, or rendering.style: text",
            )
        optional = [field for field in ("hour", "weekday", "times") if field in template.fields]
        blocks: dict[str, Sequence[str]] = {
            "start": ["history"],
            "behavior": field_words(vocabulary, template, "behavior"),
            "gap": field_words(vocabulary, template, "gap"),
            "value": [UNKNOWN, *vocabulary.values.words()[1:]],
            **{field: field_words(vocabulary, template, field) for field in optional},
            **{f"{USER_PREFIX}{n}": [UNKNOWN, *words] for n, words in vocabulary.features.items()},
            "item": vocabulary.catalogue.texts,
        }
        ends = np.cumsum([len(words) for words in blocks.values()]).tolist()
        sizes = zip(blocks.items(), ends, strict=True)
        self._ids = {block: range(end - len(words), end) for (block, words), end in sizes}
        self.words = [_meaning(block, word) for block, words in blocks.items() for word in words]
        """(U,) meaning of each id, from which the language model makes its first embedding."""
        self.ids: IntArray = np.arange(len(self.words), dtype=np.int64)
        self.fields: IntArray = np.full(len(self.words), -1, dtype=np.int64)
        for field in self._slots:
            self.fields[self._ids[field]] = FIELDS.index(field)

    @property
    def first_item(self) -> int:
        """Id of item 0."""
        return self._ids["item"].start

    def ids_of(self, field: str) -> range:
        """Ids of a field's words, for fields of the event line and added fields."""
        return self._ids[field]

    def lookup(self, slot: int, codes: IntArray) -> tuple[IntArray, IntArray]:
        """See `TokenCache.lookup`: one id each."""
        first = self._ids[self._slots[slot]].start
        return first + codes.astype(np.int64), np.ones(len(codes), dtype=np.int64)

    def added(self, codes: Mapping[str, IntArray]) -> IntArray:
        """(S, A) ids of the template's added fields, from (S,) codes of every field."""
        fields = self._template.added
        columns = [self._ids[field].start + codes[field].astype(np.int64) for field in fields]
        events = len(codes["item"])
        return np.stack(columns, axis=1) if columns else np.empty((events, 0), dtype=np.int64)

    def longest_start(self, slot: int) -> int:
        """See `TokenCache.longest_start`: every field has one token."""
        return 1

    def prompt(self, user: Mapping[str, str]) -> IntArray:
        """See `TokenCache.prompt`: the start id and one id for each user feature."""
        ids = [self._ids["start"].start]
        for name in self._template.user_features:
            code = self._vocabulary.feature_code(name, user.get(name, ""))
            ids.append(self._ids[f"{USER_PREFIX}{name}"].start + code)
        return np.array(ids, dtype=np.int64)


def _meaning(block: str, word: str) -> str:
    """The meaning of an id in words that a language model has read before."""
    if block in {"value", "gap", "hour"}:
        return f"{block} {word}"
    if block.startswith(USER_PREFIX):
        return f"{block.removeprefix(USER_PREFIX)} {word}"
    return word
