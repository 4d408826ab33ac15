"""Rules bound to a catalogue: their effect on the scores, and the changes they made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.config.rules import Rule, Test
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.rules.conditions import Answer, Condition, RuleContext, bind
from llm_influence.types import BoolArray, FloatArray, History, IntArray

EXCLUDED = -np.inf
"""Change of the score of an item that a rule excludes."""


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
    """The effect of one rule after one history.

    Attributes:
        rule: The rule's name.
        items: (I,) bool, the items that it excludes or boosts.
        change: The change of their scores; `EXCLUDED` for an exclusion.
    """

    rule: str
    items: BoolArray
    change: float


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

        def bound(tests: dict[str, Test], place: str) -> list[Condition]:
            return [
                bind(field, test, context, f"{place}, {field}") for field, test in tests.items()
            ]

        self._bound = [
            _Bound(
                rule,
                bound(rule.conditions, f"rule {rule.name!r}, if"),
                bound(rule.unless, f"rule {rule.name!r}, unless"),
            )
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
        """(B, I) total changes of the scores of all items after B histories.

        Raises:
            ConfigError: A user lacks a feature, or a feature to compare is not a number.
        """
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
