"""Rules that stand behind a model: what may be recommended to whom, and what is preferred.

    rules:
      - name: no horror for children
        if: {item.genres: Horror, user.age: {below: 18}}
        then: exclude
      - name: the director of the last film that was liked
        if: {item.shares: {with: last, value_from: 4, relations: [film.film.directed_by]}}
        then: {boost: 0.5}

They are data: names of fields, and tests of a few kinds. Nothing in them is ever run.
docs/knowledge.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_serializer, model_validator

from llm_influence.config.document import Section
from llm_influence.errors import ConfigError, choices

SHARES = "item.shares"
FIELD = re.compile(r"(item|user|history|last)\.(.+)")
S = TypeVar("S", bound=Section)
KEYS = ("name", "if", "unless", "then")


class ValueTest(Section):
    """What a value must be; all that is given must hold, and nothing holds of an unknown value.

    Written bare, a text, a number or a list of them is ``has``.
    """

    has: list[str] | None = Field(
        None, description="one of these is the value, or one of its words or entries"
    )
    below: float | None = None
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    known: bool | None = Field(None, description="whether there is a value at all")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: object) -> object:
        if isinstance(given, str | int | float):
            return {"has": [given]}
        return {"has": given} if isinstance(given, list) else given

    @field_validator("has", mode="before")
    @classmethod
    def _texts(cls, given: object) -> object:
        given = [given] if isinstance(given, str | int | float) else given
        return [str(each) for each in given] if isinstance(given, list) else given

    @model_validator(mode="after")
    def _asks_something(self) -> ValueTest:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError(f"at least one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def numeric(self) -> bool:
        """Whether the value is read as a number."""
        return any(
            each is not None for each in (self.below, self.above, self.at_least, self.at_most)
        )


class SharesTest(Section):
    """The item shares an entity of the graph with events of the history; see `data.knowledge`."""

    with_: Literal["last", "any"] = Field("last", alias="with")
    value_from: float | None = Field(None, description="only events of at least this value")
    behaviors: list[str] = Field([], description="only events with these behaviours; default: all")
    relations: list[str] = Field([], description="entities by these relations; default: by all")


Test = ValueTest | SharesTest


class Effect(Section):
    """What a rule does to the items that its conditions hold of.

    ``exclude``: they are not recommended. ``require``: the others are not. ``boost``: added to
    their logits; below 0 it holds them back.
    """

    kind: Literal["exclude", "require", "boost"]
    by: float = 0.0


class Rule(Section):
    """One rule, as `read_rules` makes it.

    Attributes:
        name: What people call it; each once.
        conditions: Field to test, all of which must hold (``if``).
        unless: Field to test; where all of these hold, the rule does not.
        then: What it does.
    """

    name: str
    conditions: dict[str, Test]
    unless: dict[str, Test] = Field({})
    then: Effect

    @model_serializer
    def _written(self) -> dict[str, Any]:
        """As a file has it."""
        boost = {"boost": self.then.by}
        return {
            "name": self.name,
            "if": _as_written(self.conditions),
            **({"unless": _as_written(self.unless)} if self.unless else {}),
            "then": boost if self.then.kind == "boost" else self.then.kind,
        }


def load_rules(path: str | Path) -> list[Rule]:
    """Read rules from a YAML file: a list of them, or a mapping with that list as ``rules``.

    Raises:
        ConfigError: The file cannot be read, or a rule is wrong; names the rule and its field.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            where=str(path),
            expected="a YAML file of rules",
            fix="check the path and the syntax",
        ) from error
    if isinstance(tree, dict) and tree.keys() == {"rules"}:
        tree = tree["rules"]
    return read_rules(tree, str(path))


def read_rules(tree: object, place: str) -> list[Rule]:
    """Check rules that are already read; ``place`` is what messages call their source.

    Raises:
        ConfigError: A rule is wrong; names the rule and its field.
    """
    if not isinstance(tree, list):
        raise ConfigError(
            f"a {type(tree).__name__}",
            where=place,
            expected="a list of rules",
            fix="write '- name: ...' for each",
        )
    rules = [_rule(each, number, place) for number, each in enumerate(tree, start=1)]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} rules are called {name!r}",
                where=place,
                expected="a name for each rule",
                fix="rename one of them",
            )
    return rules


def _rule(tree: object, number: int, place: str) -> Rule:
    if isinstance(tree, Rule):
        return tree
    given = tree if isinstance(tree, dict) else {}
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            "it has no name",
            where=f"{place}, rule {number}",
            expected="a mapping of name, if, then",
            fix="write a name that people will understand",
        )
    where = f"{place}, rule {name!r}"
    for key in given:
        if key not in KEYS:
            raise ConfigError(
                f"unknown key {key!r}",
                where=where,
                expected=choices(KEYS, str(key)),
                fix="correct or remove it",
            )
    conditions = _tests(given.get("if"), f"{where}, if")
    unless = _tests(given["unless"], f"{where}, unless") if "unless" in given else {}
    if not any(field.startswith("item.") for field in conditions):
        raise ConfigError(
            "no condition is about the item: the rule would concern every item alike",
            where=f"{where}, if",
            expected="at least one field that begins with item.",
            fix="say which items the rule is about",
        )
    effect = _effect(given.get("then"), f"{where}, then")
    return Rule(name=name, conditions=conditions, unless=unless, then=effect)


def _tests(tree: object, where: str) -> dict[str, Test]:
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(
            f"{tree!r}",
            where=where,
            expected="a mapping of fields to tests",
            fix="write it as {item.genres: Horror, user.age: {below: 18}}",
        )
    return {
        str(field): _test(str(field), test, f"{where}, {field}") for field, test in tree.items()
    }


def _test(field: str, tree: object, where: str) -> Test:
    if isinstance(tree, ValueTest | SharesTest):
        return tree
    if not FIELD.fullmatch(field):
        raise ConfigError(
            f"{field!r} is no field",
            where=where,
            expected="item.COLUMN, item.id, item.entity, item.entity.RELATION, item.shares, "
            "user.FEATURE, history.length, history.behavior, history.COLUMN or last.COLUMN",
            fix="correct the name",
        )
    if field == SHARES:
        return _checked(SharesTest, tree, where)
    return _checked(ValueTest, tree, where)


def _effect(tree: object, where: str) -> Effect:
    if tree in ("exclude", "require"):
        return Effect(kind=tree)
    if isinstance(tree, Mapping) and tree.keys() == {"boost"}:
        return _checked(Effect, {"kind": "boost", "by": tree["boost"]}, where)
    raise ConfigError(
        f"{tree!r}",
        where=where,
        expected="exclude, require or {boost: NUMBER}",
        fix="write one of these",
    )


def _checked(kind: type[S], tree: object, where: str) -> S:
    """A part of a rule by its pydantic model; what is wrong is said as of the rule."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        part = ".".join(str(each) for each in first["loc"])
        names = [field.alias or name for name, field in kind.model_fields.items()]
        unknown = first["type"] == "extra_forbidden"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"unknown test {part!r}" if unknown else f"{part or 'it'} is {first.get('input')!r}",
            where=where,
            expected=choices(names, part) if unknown else message[0].lower() + message[1:],
            fix="correct the test",
        ) from error


def _as_written(tests: Mapping[str, Test]) -> dict[str, Any]:
    return {
        field: test.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        for field, test in tests.items()
    }
