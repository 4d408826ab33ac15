"""Templates: what is written about an event, as data.

A template's ``event`` line is words and fields, ``"{behavior} {item} after {gap}"``. It is cut at
spaces into chunks, each with at most one field, because a tokenizer may merge characters inside a
chunk but never across the space between two: so every distinct chunk can be tokenised once and a
history assembled from the results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llm_influence.errors import TemplateError, choices

FIELDS = ("behavior", "item", "text", "gap", "value", "hour", "weekday", "times")
"""Fields of an event; a field's place in this tuple is its number in every field map."""

ADDABLE = ("behavior", "gap", "value", "hour", "weekday", "times")
"""Fields that may ride on an event's token instead of taking one of their own."""

USER_PREFIX = "user."
_FIELD = re.compile(r"\{([^{}]*)\}")
_SHIPPED = resources.files("llm_influence.rendering") / "templates"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a template between two spaces: ``prefix{field}suffix``, or a bare word.

    ``field`` is one of `FIELDS`, a user feature's column name (in a history line), or None for a
    bare word, which then stands in ``prefix``.
    """

    prefix: str
    field: str | None
    suffix: str

    def render(self, word: str) -> str:
        """The chunk's text with ``word`` in the field's place."""
        return f"{self.prefix}{word}{self.suffix}" if self.field else self.prefix


class Template(BaseModel):
    """What is written about a history.

    Attributes:
        name: Its name in configurations.
        language: Language of the gap words, ``en`` or ``zh``.
        event: The line of one event; fields are `FIELDS`.
        added: Fields whose learned vectors are added to the event's last token in style
            ``token``: the model is told of them at no length.
        history: What stands before the first event; may use user features as ``{user.age}``.
        behaviors: Words for behaviours; those not listed stand under their own name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    language: Literal["en", "zh"] = "en"
    event: str
    added: tuple[str, ...] = ()
    history: str = ""
    behaviors: Mapping[str, str] = {}

    @cached_property
    def event_chunks(self) -> tuple[Chunk, ...]:
        """The event line in chunks."""
        return _chunks(self.event, where=f"template {self.name!r}, event")

    @cached_property
    def history_chunks(self) -> tuple[Chunk, ...]:
        """The history line in chunks; their fields are user features' column names."""
        return _chunks(self.history, where=f"template {self.name!r}, history", user=True)

    @cached_property
    def fields(self) -> frozenset[str]:
        """Fields that the template says, in the event line or added to its token."""
        return frozenset(chunk.field for chunk in self.event_chunks if chunk.field) | {*self.added}

    @property
    def user_features(self) -> tuple[str, ...]:
        """Columns of the user table that the template needs."""
        return tuple(chunk.field for chunk in self.history_chunks if chunk.field)

    @classmethod
    def load(cls, source: str) -> Template:
        """A shipped template by name, or one of your own from a YAML file.

        Raises:
            TemplateError: Unknown name, unreadable file, or an unknown field in it.
        """
        path = Path(source)
        if path.suffix in {".yaml", ".yml"}:
            if not path.is_file():
                raise TemplateError(
                    "there is no such file",
                    where=source,
                    expected=f"a YAML template, or {choices(shipped_templates())}",
                    fix="check the path",
                )
            return cls.parse(path.read_text(encoding="utf-8"), where=source)
        if source not in shipped_templates():
            raise TemplateError(
                f"no template {source!r} is shipped",
                where="rendering.template",
                expected=choices(shipped_templates(), source),
                fix="use a shipped name, or the path of a .yaml file of your own",
            )
        text = (_SHIPPED / f"{source}.yaml").read_text(encoding="utf-8")
        return cls.parse(text, where=source)

    @classmethod
    def parse(cls, text: str, *, where: str) -> Template:
        """A template from YAML text; ``where`` names its place in errors."""
        try:
            template = cls.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError) as error:
            raise TemplateError(
                str(error),
                where=where,
                expected="name, event and optionally language, history, behaviors",
                fix="compare with a shipped template",
            ) from error
        if not any(chunk.field for chunk in template.event_chunks):
            raise TemplateError(
                f"the event line {template.event!r} has no field",
                where=where,
                expected=f"at least one of {', '.join(FIELDS)}",
                fix="write a field in braces, such as {item}",
            )
        template.history_chunks  # noqa: B018 - parse now, so that errors name the file
        template._check_added(where)
        return template

    def _check_added(self, where: str) -> None:
        said = {chunk.field for chunk in self.event_chunks}
        for name in self.added:
            if name not in ADDABLE or name in said or self.added.count(name) > 1:
                raise TemplateError(
                    f"{name!r} cannot be added to the event's token",
                    where=f"{where}, added",
                    expected=f"each of {', '.join(ADDABLE)} once, not in the event line",
                    fix="correct the list, or remove the field from the event line",
                )


def shipped_templates() -> list[str]:
    """Names of the templates that come with the library."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _SHIPPED.iterdir()
        if entry.name.endswith(".yaml")
    )


def _chunks(line: str, *, where: str, user: bool = False) -> tuple[Chunk, ...]:
    chunks = []
    for word in line.split():
        fields = _FIELD.findall(word)
        if len(fields) > 1:
            raise TemplateError(
                f"{word!r} holds {len(fields)} fields without a space between them",
                where=where,
                expected="at most one field between two spaces",
                fix="put a space between the fields",
            )
        if not fields:
            chunks.append(Chunk(word, None, ""))
            continue
        prefix, suffix = word.split("{" + fields[0] + "}")
        chunks.append(Chunk(prefix, _field_name(fields[0], where, user=user), suffix))
    return tuple(chunks)


def _field_name(name: str, where: str, *, user: bool) -> str:
    if user and name.startswith(USER_PREFIX):
        return name.removeprefix(USER_PREFIX)
    if not user and name in FIELDS:
        return name
    expected = "user features, such as {user.age}" if user else choices(FIELDS, name)
    raise TemplateError(
        f"unknown field {name!r}",
        where=where,
        expected=expected,
        fix="correct the name in braces",
    )
