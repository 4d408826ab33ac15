"""Templates: which words and fields are written about a history.

The ``event`` line of a template is words and fields, ``"{behavior} {item} after {gap}"``. It is cut
at spaces into chunks with at most one field each. A tokenizer may merge characters inside a chunk,
but never across a space. So each distinct chunk is tokenised once, and histories are assembled from
the results.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from llm_influence.config.document import Section, parse_yaml, read_yaml
from llm_influence.errors import TemplateError, choices, unknown

FIELDS = ("behavior", "item", "text", "gap", "value", "hour", "weekday", "times")
"""Fields of an event; the position in this tuple is the field's number in every field map."""
ADDABLE = ("behavior", "gap", "value", "hour", "weekday", "times")
"""Fields that can be added to the event's token instead of having a token of their own."""
USER_PREFIX = "user."
_FIELD = re.compile(r"\{([^{}]*)\}")
_SHIPPED = resources.files("llm_influence.rendering") / "templates"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a template between two spaces: ``prefix{field}suffix``.

    The field is one of `FIELDS`, in a history line a column of the user table. A bare word is the
    prefix of a chunk whose field is None.
    """

    prefix: str
    field: str | None
    suffix: str

    def render(self, word: str) -> str:
        """The text of the chunk with ``word`` as its field."""
        return f"{self.prefix}{word}{self.suffix}" if self.field else self.prefix


class Template(Section):
    """What is written about a history.

    Attributes:
        name: Its name in configurations.
        language: Language of gaps, hours and weekdays, ``en`` or ``zh``.
        event: The line of one event; its fields are `FIELDS`.
        added: Fields of style ``token`` whose embeddings are added to the event's last token, so
            that they take no token of their own.
        history: What stands before the first event; user features stand in it as ``{user.age}``.
        behaviors: Words for behaviours; a behaviour that is not listed is written by its own name.
    """

    name: str
    language: Literal["en", "zh"] = "en"
    event: str
    added: tuple[str, ...] = ()
    history: str = ""
    behaviors: dict[str, str] = Field({})

    @cached_property
    def event_chunks(self) -> tuple[Chunk, ...]:
        """Chunks of the event line."""
        return _chunks(self.event, where=f"template {self.name!r}, event")

    @cached_property
    def history_chunks(self) -> tuple[Chunk, ...]:
        """Chunks of the history line; their fields are columns of the user table."""
        return _chunks(self.history, where=f"template {self.name!r}, history", user=True)

    @cached_property
    def line_fields(self) -> tuple[str, ...]:
        """Fields of the event line, in its order."""
        return tuple(chunk.field for chunk in self.event_chunks if chunk.field)

    @cached_property
    def fields(self) -> frozenset[str]:
        """Fields of the event line and added fields."""
        return frozenset((*self.line_fields, *self.added))

    @property
    def user_features(self) -> tuple[str, ...]:
        """Columns of the user table that the history line needs."""
        return tuple(chunk.field for chunk in self.history_chunks if chunk.field)

    @classmethod
    def load(cls, source: str) -> Template:
        """Read a template.

        Args:
            source: Name of a shipped template, or path of a YAML file.

        Raises:
            TemplateError: The name is unknown, the file cannot be read, or a field is unknown.
        """
        path, shipped = Path(source), shipped_templates()
        if path.suffix in {".yaml", ".yml"}:
            if not path.is_file():
                found, expected = "there is no such file", f"a YAML template, or {choices(shipped)}"
                raise TemplateError(found, where=source, expected=expected, fix="check the path")
            return cls._of(read_yaml(path, TemplateError), source)
        if source not in shipped:
            fix = "use a shipped name, or the path of your own .yaml file"
            raise unknown(
                TemplateError, "template", source, shipped, where="rendering.template", fix=fix
            )
        text = (_SHIPPED / f"{source}.yaml").read_text(encoding="utf-8")
        return cls._of(parse_yaml(text, source, TemplateError), source)

    @classmethod
    def _of(cls, tree: object, where: str) -> Template:
        template = cls.of(tree, where, kind=TemplateError)
        if not template.line_fields:
            found = f"the event line {template.event!r} has no field"
            expected = f"at least one of {', '.join(FIELDS)}"
            fix = "write a field in braces, such as {item}"
            raise TemplateError(found, where=where, expected=expected, fix=fix)
        len(template.history_chunks)  # an unknown field is an error now
        for name in template.added:
            allowed = name in ADDABLE and name not in template.line_fields
            if not allowed or template.added.count(name) > 1:
                found = f"{name!r} cannot be added to the event's token"
                expected = f"each of {', '.join(ADDABLE)} once, not in the event line"
                fix = "correct the list, or remove the field from the event line"
                raise TemplateError(found, where=f"{where}, added", expected=expected, fix=fix)
        return template


def shipped_templates() -> list[str]:
    """Names of the templates that come with the library."""
    names = (entry.name for entry in _SHIPPED.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _chunks(line: str, *, where: str, user: bool = False) -> tuple[Chunk, ...]:
    chunks = []
    for word in line.split():
        fields = _FIELD.findall(word)
        if len(fields) > 1:
            found = f"{word!r} holds {len(fields)} fields without a space between them"
            expected, fix = "at most one field between two spaces", "put a space between the fields"
            raise TemplateError(found, where=where, expected=expected, fix=fix)
        if fields:
            prefix, suffix = word.split("{" + fields[0] + "}")
            chunks.append(Chunk(prefix, _field_name(fields[0], where, user=user), suffix))
        else:
            chunks.append(Chunk(word, None, ""))
    return tuple(chunks)


def _field_name(name: str, where: str, *, user: bool) -> str:
    if user and name.startswith(USER_PREFIX):
        return name.removeprefix(USER_PREFIX)
    if not user and name in FIELDS:
        return name
    found = f"unknown field {name!r}"
    expected = "user features, such as {user.age}" if user else choices(FIELDS, name)
    raise TemplateError(found, where=where, expected=expected, fix="correct the name in braces")
