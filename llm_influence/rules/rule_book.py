"""Which rule changed which recommendation: for people who ask why something is not there.

Rules bound to a catalogue: what they change in the scores after a history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.config.rules import Rule, Test
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.rules.conditions import Answer, Condition, Known, bind
from llm_influence.types import BoolArray, FloatArray, History, IntArray


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One rule and one item that is recommended, or would be without the rules.

    Attributes:
        rule: The rule's name.
        item: Item id.
        title: Its name for people; the id where there is none.
        boost: What the rule adds to the item's logit; None where it excludes the item.
        before: The item's place without any rule, from 1.
        after: Its place with all of them; None where it is excluded.
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
        places = f"place {self.before} to " + (
            "left out" if self.after is None else f"place {self.after}"
        )
        return f"{self.rule}: {self.title} by {self.boost:+g}, {places}"


EXCLUDED = -np.inf
"""Change of the score of an item that may not be recommended."""


@dataclass(frozen=True, slots=True)
class RuleEffect:
    """What one rule does after one history.

    Attributes:
        rule: Its name.
        items: (I,) bool, the items that it excludes or boosts.
        change: Of their scores; `EXCLUDED` where it excludes them.
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
    """Rules, ready to be applied.

    A rule concerns a history if its conditions about user and history hold, and then those items
    that its conditions about items hold of. ``require`` excludes the others. What several rules
    add to an item's score is summed; what any of them excludes is excluded.

    Args:
        rules: The rules.
        vocabulary: Items and behaviours by code.
        facts: What a graph says of the items, if there is one.

    Raises:
        ConfigError: A field of a rule is not known here; names the rule and the field.
    """

    def __init__(
        self, rules: Sequence[Rule], vocabulary: Vocabulary, facts: ItemFacts | None
    ) -> None:
        self.rules, self._lexicon = list(rules), vocabulary
        known = Known(vocabulary.catalogue, facts, vocabulary.behaviors)
        self._bound = [
            _Bound(
                rule,
                _bind_all(rule.conditions, known, f"rule {rule.name!r}, if"),
                _bind_all(rule.unless, known, f"rule {rule.name!r}, unless"),
            )
            for rule in self.rules
        ]

    def effects(self, history: History) -> Iterator[RuleEffect]:
        """What each rule that concerns a history does, in the order of the rules."""
        codes = self._lexicon.item_codes(history)
        for bound in self._bound:
            items = self._items(bound, history, codes)
            if items is not None:
                then = bound.rule.then
                change = then.by if then.kind == "boost" else EXCLUDED
                yield RuleEffect(bound.rule.name, items, change)

    def changes(self, histories: Sequence[History]) -> FloatArray:
        """(B, I) what is added to the scores of all items after B histories.

        Raises:
            ConfigError: A user lacks a feature, or it is to be compared and is no number.
        """
        found = np.zeros((len(histories), len(self._lexicon.catalogue)), dtype=np.float32)
        for row, history in zip(found, histories, strict=True):
            for effect in self.effects(history):
                row[effect.items] += effect.change
        return found

    def _items(self, bound: _Bound, history: History, codes: IntArray) -> BoolArray | None:
        """(I,) the items that a rule excludes or boosts; None where it does not concern them."""
        answers = [condition(history, codes) for condition in bound.conditions]
        if any(answer is False for answer in answers):
            return None
        matching = self._all(answers)
        if bound.rule.then.kind == "require":
            matching = ~matching
        if bound.unless:
            matching &= ~self._all([condition(history, codes) for condition in bound.unless])
        return matching if matching.any() else None

    def _all(self, answers: Sequence[Answer]) -> BoolArray:
        found = np.ones(len(self._lexicon.catalogue), dtype=bool)
        for answer in answers:
            found &= answer
        return found


def _bind_all(tests: dict[str, Test], known: Known, where: str) -> list[Condition]:
    return [bind(field, test, known, f"{where}, {field}") for field, test in tests.items()]
