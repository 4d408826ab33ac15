"""Rules of recommendation: what may be recommended to whom, and what is preferred.

    rules:
      - name: no horror for children
        if: {item.genres: Horror, user.age: {below: 18}}
        then: exclude
      - name: the director of the last film that was liked
        if: {item.shares: {with: last, value_from: 4, relations: [film.film.directed_by]}}
        then: {boost: 0.5}

Rules are data: names of fields and a few kinds of tests. No part of a rule is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from llm_influence.config.document import Section, as_written, read_yaml
from llm_influence.errors import ConfigError, unknown

SHARES = "item.shares"
FIELD = re.compile(r"(item|user|history|last)\.(.+)")
FIELDS = (
    "item.COLUMN, item.id, item.entity, item.entity.RELATION, item.shares, user.FEATURE, "
    "history.length, history.behavior, history.COLUMN or last.COLUMN"
)
KEYS = ("name", "if", "unless", "then")


class ValueTest(Section):
    """Conditions on a value; all that are given must hold. An unknown value passes none.

    A bare text, number or list in place of a mapping is read as ``has``.
    """

    has: list[str] | None = Field(
        None, description="The value, or one of its words or entries, is one of these."
    )
    below: float | None = Field(None, description="The value is less than this number.")
    above: float | None = Field(None, description="The value is greater than this number.")
    at_least: float | None = Field(None, description="The value is this number or greater.")
    at_most: float | None = Field(None, description="The value is this number or less.")
    known: bool | None = Field(None, description="Whether there is a value at all.")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, tree: object) -> object:
        return {"has": tree} if isinstance(tree, str | int | float | list) else tree

    @field_validator("has", mode="before")
    @classmethod
    def _texts(cls, words: object) -> object:
        words = [words] if isinstance(words, str | int | float) else words
        if isinstance(words, list) and not all(isinstance(w, str | int | float) for w in words):
            raise ValueError("texts alone; write 'null' in quotes if it is a value")
        return [str(as_written(word)) for word in words] if isinstance(words, list) else words

    @model_validator(mode="after")
    def _has_a_condition(self) -> ValueTest:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError(f"at least one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def numeric(self) -> bool:
        """Whether the value is read as a number."""
        limits = (self.below, self.above, self.at_least, self.at_most)
        return any(limit is not None for limit in limits)


class SharesTest(Section):
    """The item and events of the history share an entity of the knowledge graph."""

    with_: Literal["last", "any"] = Field(
        "last", alias="with", description="Events that count: the last one, or any of the history."
    )
    value_from: float | None = Field(
        None, description="Smallest value of events that count. null: values do not matter."
    )
    behaviors: list[str] = Field(
        [], description="Behaviours of events that count. []: all behaviours."
    )
    relations: list[str] = Field(
        [], description="Relations whose entities are compared. []: all relations."
    )


Test = ValueTest | SharesTest


class Effect(Section):
    """What a rule does to the items that its conditions hold for."""

    kind: Literal["exclude", "require", "boost"] = Field(
        description="exclude: these items are not recommended. require: no other item is "
        "recommended. boost: a number is added to their logits."
    )
    by: float = Field(0.0, description="Number that a boost adds; below 0 it lowers the items.")


class Rule(Section):
    """One rule, as `read_rules` returns it."""

    name: str = Field(description="Name that people read; every rule has another one.")
    conditions: dict[str, Test] = Field(description="Tests by field; all of them must hold.")
    unless: dict[str, Test] = Field(
        {}, description="Tests by field; where all of them hold, the rule does not apply."
    )
    then: Effect = Field(description="The effect on the items.")

    @model_serializer
    def _written(self) -> dict[str, Any]:
        """The rule as a YAML file has it."""
        boost = {"boost": self.then.by}
        return {
            "name": self.name,
            "if": _as_written(self.conditions),
            **({"unless": _as_written(self.unless)} if self.unless else {}),
            "then": boost if self.then.kind == "boost" else self.then.kind,
        }


def load_rules(path: str | Path) -> list[Rule]:
    """Read rules from a YAML file: a list of rules, or a mapping with that list as ``rules``.

    Raises:
        ConfigError: The file cannot be read, or a rule is wrong; names the rule and its field.
    """
    tree = read_yaml(Path(path))
    if isinstance(tree, dict) and tree.keys() == {"rules"}:
        tree = tree["rules"]
    return read_rules(tree, str(path))


def read_rules(tree: object, where: str) -> list[Rule]:
    """Make rules from plain data; ``where`` is the file or object it comes from, for messages."""
    if not isinstance(tree, list):
        found, fix = f"a {type(tree).__name__}", "write '- name: ...' for each rule"
        raise ConfigError(found, where=where, expected="a list of rules", fix=fix)
    rules = [_rule(rule, number, where) for number, rule in enumerate(tree, start=1)]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            found, fix = f"{names.count(name)} rules are called {name!r}", "rename one of them"
            raise ConfigError(found, where=where, expected="another name for each rule", fix=fix)
    return rules


def _rule(tree: object, number: int, place: str) -> Rule:
    if isinstance(tree, Rule):
        return tree
    parts = tree if isinstance(tree, dict) else {}
    name = parts.get("name")
    if not isinstance(name, str) or not name:
        found, expected = "it has no name", "a mapping of name, if, then"
        fix = "write a name that people will understand"
        raise ConfigError(found, where=f"{place}, rule {number}", expected=expected, fix=fix)
    where = f"{place}, rule {name!r}"
    for key in parts:
        if key not in KEYS:
            raise unknown(ConfigError, "key", key, KEYS, where=where, fix="correct or remove it")
    conditions = _tests(parts.get("if"), f"{where}, if")
    unless = _tests(parts["unless"], f"{where}, unless") if "unless" in parts else {}
    if not any(field.startswith("item.") for field in conditions):
        found = "no condition is about the item: the rule would apply to all items alike"
        expected = "at least one field that begins with item."
        fix = "name the items by a field such as item.genres"
        raise ConfigError(found, where=f"{where}, if", expected=expected, fix=fix)
    effect = _effect(parts.get("then"), f"{where}, then")
    return Rule(name=name, conditions=conditions, unless=unless, then=effect)


def _tests(tree: object, where: str) -> dict[str, Test]:
    if not isinstance(tree, dict) or not tree:
        found, fix = f"{tree!r}", "write it as {item.genres: Horror, user.age: {below: 18}}"
        raise ConfigError(found, where=where, expected="a mapping of fields to tests", fix=fix)
    tests = {str(field): test for field, test in tree.items()}
    return {field: _test(field, test, f"{where}, {field}") for field, test in tests.items()}


def _test(field: str, tree: object, where: str) -> Test:
    if isinstance(tree, ValueTest | SharesTest):
        return tree
    if not FIELD.fullmatch(field):
        found, fix = f"{field!r} is not a field", "correct the name"
        raise ConfigError(found, where=where, expected=FIELDS, fix=fix)
    kind = SharesTest if field == SHARES else ValueTest
    return kind.of(tree, where, what="test")


def _effect(tree: object, where: str) -> Effect:
    if tree in ("exclude", "require"):
        return Effect(kind=tree)
    if isinstance(tree, Mapping) and tree.keys() == {"boost"}:
        return Effect.of({"kind": "boost", "by": tree["boost"]}, where, what="effect")
    expected = "exclude, require or {boost: NUMBER}"
    raise ConfigError(f"{tree!r}", where=where, expected=expected, fix="write one of these")


def _as_written(tests: Mapping[str, Test]) -> dict[str, Any]:
    return {
        field: test.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        for field, test in tests.items()
    }
