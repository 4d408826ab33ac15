"""Recommendation rules bound to a catalogue: their conditions, effects on scores, and changes.

A field `subject.name` says what a test applies to: a feature of the user, the length or behaviours
of the history, or items (all candidates, the last event's, or any event's).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.config.rules import SHARES, Rule, SharesTest, Test, ValueTest
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.data.schema import as_text
from llm_influence.errors import ConfigError, choices, unknown
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.types import BoolArray, FloatArray, History, IntArray

Answer = bool | BoolArray
"""One answer for all items, or one for each: (I,)."""

Condition = Callable[[History, IntArray], Answer]
"""Whether a test holds after a history whose events have these (E,) item codes."""

Value = tuple[str, ...]
"""A cell as texts: the entries of a list, or the whole of a text; empty if unknown."""

SEPARATORS = re.compile(r"[,;|]\s*|\s+")
ENTITY, ID = "entity", "id"
EXCLUDED = -np.inf
"""Change of the score of an item that a rule excludes."""
BOUNDS = {
    "below": operator.lt,
    "above": operator.gt,
    "at_least": operator.ge,
    "at_most": operator.le,
}


@dataclass(frozen=True, slots=True)
class RuleContext:
    """Items, their attributes in the knowledge graph (if any), and the behaviours of events."""

    catalogue: Catalogue
    facts: ItemFacts | None
    behaviors: Sequence[str]


def bind(field: str, test: Test, context: RuleContext, where: str) -> Condition:
    """Bind the test of one field to the data that it refers to."""
    if isinstance(test, SharesTest):
        return _shares(test, context, where)
    subject, _, name = field.partition(".")
    if subject == "user":
        return lambda history, codes: _user_holds(name, test, history, where)
    if field == "history.length":
        return lambda history, codes: holds(test, (str(len(history)),), where)
    if field == "history.behavior":
        _check_names("behaviour", test.has or [], context.behaviors, where)
        return lambda history, codes: holds(test, _behaviors(history), where, whole=True)
    mask = item_mask(name, test, context, where)
    if subject == "item":
        return lambda history, codes: mask
    if subject == "last":
        return lambda history, codes: bool(len(codes) and mask[codes[-1]])
    return lambda history, codes: bool(mask[codes].any())


def holds(test: ValueTest, value: Value, where: str, *, whole: bool = False) -> bool:
    """Whether a value passes a test; ids and behaviours are compared whole, with their case."""
    if test.known is not None and bool(value) != test.known:
        return False
    if test.has is not None:
        words = set(value) if whole else _words(value)
        if not any((name if whole else name.casefold()) in words for name in test.has):
            return False
    if not test.numeric or not value:
        return not test.numeric
    try:
        (number,) = map(float, value)
    except ValueError as error:
        found, fix = f"{', '.join(value)!r} is no number", "test with has, or correct the value"
        raise ConfigError(found, where=where, expected="a number to compare", fix=fix) from error
    bounds = {name: getattr(test, name) for name in BOUNDS}
    return all(BOUNDS[name](number, bound) for name, bound in bounds.items() if bound is not None)


def item_mask(name: str, test: ValueTest, context: RuleContext, where: str) -> BoolArray:
    """(I,) whether each item's column, id or entities pass a test; equal cells are tested once.

    Raises:
        ConfigError: The field is unknown, or no item has one of the values of ``has``.
    """
    values = _values(name, context, where)
    whole = name == ID or name.partition(".")[0] == ENTITY
    different = list(dict.fromkeys(values))
    _check_values(test.has or [], different, where, whole=whole)
    passes = {value: holds(test, value, where, whole=whole) for value in different}
    return np.array([passes[value] for value in values], dtype=bool)


def _words(value: Value) -> set[str]:
    """The entries of a value, and the words in each, without case."""
    entries = [entry.casefold() for entry in value]
    return set(entries).union(*(SEPARATORS.split(entry) for entry in entries))


def _check_values(
    names: Sequence[str], values: Iterable[Value], where: str, *, whole: bool
) -> None:
    """Refuse a value that no item has; the nearest one is named."""
    known = {word for value in values for word in (value if whole else _words(value))}
    for name in names:
        if (name if whole else name.casefold()) not in known:
            shown = {entry for value in values for entry in value}
            fix = "correct the value, or leave it out: the rule would affect no item"
            raise unknown(ConfigError, "value", name, shown, where=where, fix=fix)


def _user_holds(name: str, test: ValueTest, history: History, where: str) -> bool:
    if history.user and name not in history.user:
        found = f"user {history.user_id!r} has no feature {name!r}"
        fix = "correct the name, or add the column to the user table"
        raise ConfigError(found, where=where, expected=choices(history.user, name), fix=fix)
    text = history.user.get(name, "")
    return holds(test, (text,) if text else (), f"{where}, user {history.user_id!r}")


def _behaviors(history: History) -> Value:
    return tuple(history.code_names.behaviors[code] for code in np.unique(history.behaviors))


def _shares(test: SharesTest, context: RuleContext, where: str) -> Condition:
    facts = _facts(context, where)
    _check_names("behaviour", test.behaviors, context.behaviors, where)
    _check_names("relation", test.relations, facts.relations, where)
    has = facts.incidence(context.catalogue.ids, test.relations)

    def shares(history: History, codes: IntArray) -> Answer:
        counted = np.ones(len(history), dtype=bool)
        if test.value_from is not None:
            counted &= history.values >= test.value_from  # False for an event without a value
        if test.behaviors:
            names = np.array(history.code_names.behaviors)
            counted &= np.isin(names[history.behaviors], test.behaviors)
        shared_with = codes[counted][-1:] if test.with_ == "last" else codes[counted]
        if not len(shared_with):  # the rule does not apply
            return False
        entities = has[np.unique(shared_with)].sum(axis=0) > 0
        return np.asarray(has @ entities.astype(np.float64) > 0)

    return shares


def _values(name: str, context: RuleContext, where: str) -> list[Value]:
    """I values of a column of the items, of their ids or of their entities."""
    catalogue = context.catalogue
    if name == ID:
        return [(item,) for item in catalogue.ids.to_pylist()]
    if name == ENTITY or name.startswith(f"{ENTITY}."):
        return _entities(name.partition(".")[2], context, where)
    if name not in catalogue.table.column_names:
        found = f"the items have no column {name!r}"
        expected = choices([*catalogue.table.column_names, ID, ENTITY, SHARES[5:]], name)
        fix = "correct the name, or add the column to the item table"
        raise ConfigError(found, where=where, expected=expected, fix=fix)
    column = catalogue.table[name]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [tuple(map(str, cell or ())) for cell in column.to_pylist()]
    texts = as_text(column, name=name, where=where).to_pylist()
    return [(text,) if text else () for text in texts]


def _entities(relation: str, context: RuleContext, where: str) -> list[Value]:
    """Ids and names of each item's entities."""
    facts = _facts(context, where)
    table = facts.table
    if relation:
        _check_names("relation", [relation], facts.relations, where)
        table = table.filter(pc.equal(table["relation"], relation))
    entities: list[list[str]] = [[] for _ in range(len(context.catalogue))]
    codes = context.catalogue.find(table["item_id"])
    names = zip(codes.tolist(), table["entity"].to_pylist(), table["name"].to_pylist(), strict=True)
    for code, entity, name in names:
        if code >= 0:
            entities[code] += [entity, *([name] if name else [])]
    return [tuple(values) for values in entities]


def _facts(context: RuleContext, where: str) -> ItemFacts:
    if context.facts is None:
        expected = "a model trained with data.knowledge.source"
        fix = "set data.knowledge.source, or test a column of the items"
        raise ConfigError("the model knows no graph", where=where, expected=expected, fix=fix)
    return context.facts


def _check_names(what: str, names: Sequence[str], known: Sequence[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise unknown(ConfigError, what, name, known, where=where, fix="correct the name")


@dataclass(frozen=True, slots=True)
class RuleChange:
    """The change of one item by one rule, for an item recommended with or without the rules.

    Attributes:
        rule: The rule's name.
        item: Item id.
        title: The item's title, or its id without one.
        boost: Number that the rule adds to the item's logit; None if it excludes the item.
        before: The item's rank without any rule, from 1.
        after: Its rank with all rules; None if it is excluded.
    """

    rule: str
    item: str
    title: str
    boost: float | None
    before: int
    after: int | None

    def to_text(self) -> str:
        """One line: ``no horror for children: Scream (1996) left out, else at place 3``."""
        if self.boost is None:
            return f"{self.rule}: {self.title} left out, else at place {self.before}"
        after = "left out" if self.after is None else f"place {self.after}"
        return f"{self.rule}: {self.title} by {self.boost:+g}, place {self.before} to {after}"


@dataclass(frozen=True, slots=True)
class RuleEffect:
    """The effect of one rule after one history."""

    rule: str
    items: BoolArray
    """(I,) bool, the items that it excludes or boosts."""
    change: float
    """Change of their scores; `EXCLUDED` for an exclusion."""


@dataclass(frozen=True, slots=True)
class _Bound:
    rule: Rule
    conditions: list[Condition]
    unless: list[Condition]


class RuleBook:
    """Rules bound to the items and behaviours of a model.

    A rule applies to a history if its conditions on user and history hold. It then affects the
    items that pass its conditions on items; ``require`` excludes all other items. Boosts of several
    rules add up. An item is excluded if any rule excludes it.

    Args:
        rules: The rules.
        vocabulary: Items and behaviours by code.
        facts: The items' attributes in the knowledge graph, if the model has one.

    Raises:
        ConfigError: A field of a rule is unknown; the message names the rule and the field.
    """

    def __init__(
        self, rules: Sequence[Rule], vocabulary: Vocabulary, facts: ItemFacts | None
    ) -> None:
        self.rules, self._vocabulary = list(rules), vocabulary
        context = RuleContext(vocabulary.catalogue, facts, vocabulary.behaviors)

        def bound(rule: Rule, tests: dict[str, Test], part: str) -> list[Condition]:
            place = f"rule {rule.name!r}, {part}"
            return [bind(name, test, context, f"{place}, {name}") for name, test in tests.items()]

        self._bound = [
            _Bound(rule, bound(rule, rule.conditions, "if"), bound(rule, rule.unless, "unless"))
            for rule in self.rules
        ]

    def effects(self, history: History) -> Iterator[RuleEffect]:
        """The effects of all rules that apply to a history, in the order of the rules."""
        codes = self._vocabulary.item_codes(history)
        for bound in self._bound:
            items = self._items(bound, history, codes)
            if items is not None:
                then = bound.rule.then
                change = then.by if then.kind == "boost" else EXCLUDED
                yield RuleEffect(bound.rule.name, items, change)

    def changes(self, histories: Sequence[History]) -> FloatArray:
        """(B, I) total changes of the scores of all items after B histories."""
        changes = np.zeros((len(histories), len(self._vocabulary.catalogue)), dtype=np.float32)
        for row, history in zip(changes, histories, strict=True):
            for effect in self.effects(history):
                row[effect.items] += effect.change
        return changes

    def _items(self, bound: _Bound, history: History, codes: IntArray) -> BoolArray | None:
        """(I,) the items that a rule excludes or boosts; None if it does not apply."""
        answers = [condition(history, codes) for condition in bound.conditions]
        if any(answer is False for answer in answers):
            return None
        items = self._all(answers)
        if bound.rule.then.kind == "require":
            items = ~items
        if bound.unless:
            items &= ~self._all([condition(history, codes) for condition in bound.unless])
        return items if items.any() else None

    def _all(self, answers: Sequence[Answer]) -> BoolArray:
        items = np.ones(len(self._vocabulary.catalogue), dtype=bool)
        for answer in answers:
            items &= answer
        return items
