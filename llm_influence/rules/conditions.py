"""One condition of a rule, bound to the items that it will be asked about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.config.rules import SHARES, SharesTest, Test, ValueTest
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.data.schema import as_text
from llm_influence.errors import ConfigError, choices
from llm_influence.types import BoolArray, History, IntArray

Answer = bool | BoolArray
"""Of all items alike, or (I,) of each."""

Condition = Callable[[History, IntArray], Answer]
"""What holds after a history whose (E,) items have these codes."""

Value = tuple[str, ...]
"""A cell as texts: its entries, the whole of a text; empty where it is unknown."""

SEPARATORS = re.compile(r"[,;|]\s*|\s+")
ENTITY, ID = "entity", "id"


@dataclass(frozen=True, slots=True)
class Known:
    """What conditions are asked of.

    Attributes:
        catalogue: The items by code.
        facts: What a graph says of them, if there is one.
        behaviors: The behaviours that events may have.
    """

    catalogue: Catalogue
    facts: ItemFacts | None
    behaviors: Sequence[str]


def bind(field: str, test: Test, known: Known, where: str) -> Condition:
    """Bind one condition.

    Args:
        field: As a rule names it.
        test: What it must be.
        known: What it is asked of.
        where: The rule and its field, for messages.

    Raises:
        ConfigError: The field is not known here, or a value to be compared is no number.
    """
    if isinstance(test, SharesTest):
        return _shares(test, known, where)
    subject, _, name = field.partition(".")
    if subject == "user":
        return lambda history, codes: _of_user(name, test, history, where)
    if field == "history.length":
        return lambda history, codes: holds(test, (str(len(history)),), where)
    if field == "history.behavior":
        _check_behaviors(test.has or [], known, where)
        return lambda history, codes: holds(test, _behaviors(history), where)
    mask = item_mask(name, test, known, where)
    if subject == "item":
        return lambda history, codes: mask
    if subject == "last":
        return lambda history, codes: bool(len(codes) and mask[codes[-1]])
    return lambda history, codes: bool(mask[codes].any())


def holds(test: ValueTest, value: Value, where: str) -> bool:
    """Whether a value evaluations a test.

    Raises:
        ConfigError: It is compared and is no number.
    """
    if test.known is not None and bool(value) != test.known:
        return False
    if test.has is not None:
        words = _words(value)
        if not any(each.casefold() in words for each in test.has):
            return False
    return not test.numeric or (bool(value) and _within(test, value, where))


def item_mask(name: str, test: ValueTest, known: Known, where: str) -> BoolArray:
    """(I,) whether each item's column, id or entities pass a test; equal cells are asked once."""
    answers: dict[Value, bool] = {}
    found = np.zeros(len(known.catalogue), dtype=bool)
    for place, value in enumerate(_values(name, known, where)):
        if value not in answers:
            answers[value] = holds(test, value, where)
        found[place] = answers[value]
    return found


def _of_user(name: str, test: ValueTest, history: History, where: str) -> bool:
    if history.user and name not in history.user:
        raise ConfigError(
            f"user {history.user_id!r} has no feature {name!r}",
            where=where,
            expected=choices(history.user, name),
            fix="correct the name, or add the column to the user table",
        )
    text = history.user.get(name, "")
    return holds(test, (text,) if text else (), f"{where}, user {history.user_id!r}")


def _behaviors(history: History) -> Value:
    return tuple(history.code_names.behaviors[code] for code in np.unique(history.behaviors))


def _check_behaviors(names: Iterable[str], known: Known, where: str) -> None:
    for name in names:
        if name not in known.behaviors:
            raise ConfigError(
                f"no event has the behaviour {name!r}",
                where=where,
                expected=choices(known.behaviors, name),
                fix="correct the name",
            )


def _shares(test: SharesTest, known: Known, where: str) -> Condition:
    facts = _facts(known, where)
    _check_behaviors(test.behaviors, known, where)
    for name in test.relations:
        _check_relation(name, facts, where)
    has = facts.incidence(known.catalogue.ids, test.relations)

    def shares(history: History, codes: IntArray) -> Answer:
        counted = np.ones(len(history), dtype=bool)
        if test.value_from is not None:
            counted &= history.values >= test.value_from  # False of an event without a value
        if test.behaviors:
            names = np.array(history.code_names.behaviors)
            counted &= np.isin(names[history.behaviors], test.behaviors)
        those = codes[counted][-1:] if test.with_ == "last" else codes[counted]
        if not len(those):  # nothing to share with: the rule says nothing
            return False
        entities = has[np.unique(those)].sum(axis=0) > 0
        return np.asarray(has @ entities.astype(np.float64) > 0)

    return shares


def _values(name: str, known: Known, where: str) -> list[Value]:
    """I values of a column of the items, of their ids or of their entities."""
    catalogue = known.catalogue
    if name == ID:
        return [(item,) for item in catalogue.ids.to_pylist()]
    if name == ENTITY or name.startswith(f"{ENTITY}."):
        return _entities(name.partition(".")[2], known, where)
    if name not in catalogue.table.column_names:
        raise ConfigError(
            f"the items have no column {name!r}",
            where=where,
            expected=choices([*catalogue.table.column_names, ID, ENTITY, SHARES[5:]], name),
            fix="correct the name, or add the column to the item table",
        )
    column = catalogue.table[name]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [tuple(map(str, cell or ())) for cell in column.to_pylist()]
    texts = as_text(column, name=name, where=where).to_pylist()
    return [(text,) if text else () for text in texts]


def _entities(relation: str, known: Known, where: str) -> list[Value]:
    """Ids and names of each item's entities."""
    facts = _facts(known, where)
    table = facts.table
    if relation:
        _check_relation(relation, facts, where)
        table = table.filter(pc.equal(table["relation"], relation))
    found: list[list[str]] = [[] for _ in range(len(known.catalogue))]
    codes = known.catalogue.find(table["item_id"])
    names = zip(codes.tolist(), table["entity"].to_pylist(), table["name"].to_pylist(), strict=True)
    for code, entity, name in names:
        if code >= 0:
            found[code] += [entity, *([name] if name else [])]
    return [tuple(each) for each in found]


def _facts(known: Known, where: str) -> ItemFacts:
    if known.facts is None:
        raise ConfigError(
            "the model knows no graph",
            where=where,
            expected="a model trained with data.knowledge.source",
            fix="name a graph there, or ask for a column of the items",
        )
    return known.facts


def _check_relation(name: str, facts: ItemFacts, where: str) -> None:
    if name not in facts.relations:
        raise ConfigError(
            f"the graph has no relation {name!r}",
            where=where,
            expected=choices(facts.relations, name),
            fix="correct the name",
        )


def _words(value: Value) -> set[str]:
    """The entries of a value and the words of each, in small letters."""
    entries = [entry.casefold() for entry in value]
    return set(entries).union(*(SEPARATORS.split(entry) for entry in entries))


def _within(test: ValueTest, value: Value, where: str) -> bool:
    try:
        (number,) = map(float, value)
    except ValueError as error:
        raise ConfigError(
            f"{', '.join(value)!r} is no number",
            where=where,
            expected="a number to compare",
            fix="ask for has, or correct the value",
        ) from error
    return (
        (test.below is None or number < test.below)
        and (test.above is None or number > test.above)
        and (test.at_least is None or number >= test.at_least)
        and (test.at_most is None or number <= test.at_most)
    )
