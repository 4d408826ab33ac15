"""The text of a history, piece by piece: what a template says in a lexicon's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from llm_influence.rendering.clock import hour_words, weekday_words
from llm_influence.rendering.gaps import gap_words
from llm_influence.rendering.lexicon import UNKNOWN, Lexicon
from llm_influence.rendering.template import Chunk, Template
from llm_influence.rendering.times import times_words
from llm_influence.types import History


class Wording:
    """A template in a lexicon's words.

    Attributes:
        words: For each chunk of the event line, its words by code; ``[""]`` for a bare word.
    """

    def __init__(self, template: Template, lexicon: Lexicon) -> None:
        self._template, self._lexicon = template, lexicon
        self._chunks = template.event_chunks
        self.words: list[Sequence[str]] = [
            field_words(lexicon, template, chunk.field) if chunk.field else [""]
            for chunk in self._chunks
        ]

    def frame(self, user: Mapping[str, str]) -> str:
        """The history line with the user's features in it."""
        chunks = self._template.history_chunks
        return " ".join(
            chunk.render(user.get(chunk.field, "") or UNKNOWN) if chunk.field else chunk.prefix
            for chunk in chunks
        )

    def events(self, history: History) -> Iterator[str]:
        """The line of each event, every chunk with its leading space.

        Raises:
            UnknownNameError: An item or behaviour is not in the lexicon.
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


def field_words(lexicon: Lexicon, template: Template, field: str) -> Sequence[str]:
    """Words of a field by code, in the template's language. Empty words are not said."""
    if field == "behavior":
        return [_one_line(template.behaviors.get(name, name)) for name in lexicon.behaviors]
    if field == "gap":
        return gap_words(template.language)
    if field == "hour":
        return hour_words(template.language)
    if field == "times":
        return times_words(template.language)
    if field == "weekday":
        return weekday_words(template.language)
    if field == "value":
        return lexicon.values.words()
    ids = [_one_line(item) for item in lexicon.catalogue.ids.to_pylist()]
    if field == "item":
        return ids
    texts = lexicon.catalogue.texts
    return [_one_line(text) or item for text, item in zip(texts, ids, strict=True)]


def _one_line(words: str) -> str:
    """Single spaces alone: a tokenizer may join or strip others where two pieces meet."""
    return " ".join(words.split())
