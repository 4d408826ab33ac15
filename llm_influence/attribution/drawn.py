"""Targets that are drawn without regard to the history, for the strength of events.

An event that was chosen after a history is linked to its events more often than chance. A mean over
such targets therefore multiplies two things: how strongly an event pulls at the items that it is
linked to, and how often such an item is chosen. Drawn targets hold the second fixed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llm_influence.errors import ExplanationError, out_of_range, unknown
from llm_influence.types import FloatArray, History, IntArray

By = Literal["uniform", "popularity"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Mean logit of some drawn items, minus the mean logit of all items of the catalogue.

    The mean cancels the sum over all items that probabilities have. So the value changes only by
    what events add to the drawn items, beyond what they add to every item. With more items in a
    draw, more events are linked to one of them, and fewer draws give the same precision.

    The items of a history depend on the seed, the user's id and the number of events alone. The
    items of all its draws are distinct, and the first four of eight draws are those of four. Items
    of the history are drawn too: which of its linked items a history holds depends on what was
    chosen. Analyses leave out an event whose own item was drawn, which pulls as a repeat.

    Attributes:
        draws: Targets of each history; `explain_batch` explains every one.
        items: Items of each draw.
        by: ``uniform``, or ``popularity``: in proportion to 1 + training events.
        seed: Seed of the draws.
        number: Which of the draws `Explainer.explain` explains, from 0.
    """

    draws: int = 1
    items: int = 1
    by: By = "uniform"
    seed: int = 0
    number: int = 0

    def codes(self, histories: Sequence[History], counts: IntArray) -> IntArray:
        """(N, K) codes of the drawn items of N histories.

        Args:
            histories: The histories.
            counts: (I,) training events by item.

        Raises:
            ExplanationError: The kind of draw is unknown, or there are too few items or draws.
        """
        kinds, where = get_args(By), "target drawn"
        if self.by not in kinds:
            fix = "write drawn:DRAWS,ITEMS,uniform or drawn:DRAWS,ITEMS,popularity"
            raise unknown(ExplanationError, "kind of draw", self.by, kinds, where=where, fix=fix)
        needed = self.draws * self.items
        if self.items < 1 or not 0 <= self.number < self.draws or needed > len(counts):
            expected = f"number < draws, and at most {len(counts)} drawn items, the catalogue"
            raise out_of_range(ExplanationError, "draws of a target", self, expected=expected)
        weights = counts + 1.0 if self.by == "popularity" else np.ones(len(counts))
        edges = weights.cumsum()
        drawn = [self._draw(history, edges) for history in histories]
        return np.array(drawn, dtype=np.int64).reshape(len(histories), self.items)

    def _draw(self, history: History, edges: FloatArray) -> list[int]:
        key = [self.seed, zlib.crc32(history.user_id.encode()), len(history)]
        random = np.random.default_rng(key)
        codes: dict[int, None] = {}
        while len(codes) < (self.number + 1) * self.items:
            place = np.searchsorted(edges, random.random() * edges[-1], side="right")
            codes[min(int(place), len(edges) - 1)] = None
        return list(codes)[self.number * self.items :]

    @classmethod
    def parse(cls, text: str) -> Drawn:
        """Read ``DRAWS``, ``DRAWS,ITEMS`` or ``DRAWS,ITEMS,KIND``, what follows ``drawn:``.

        Raises:
            ExplanationError: A part is no number, or the kind of draw is unknown.
        """
        parts = text.split(",")
        draws, items, by, *more = parts + ["", "1", "uniform"][len(parts) :]
        numbers = draws.isdecimal() and items.isdecimal()
        if more or not numbers or by not in get_args(By):
            expected = "drawn:DRAWS, drawn:DRAWS,ITEMS or drawn:DRAWS,ITEMS,popularity"
            raise ExplanationError(
                f"cannot read 'drawn:{text}'",
                where="target",
                expected=expected,
                fix=f"write {expected}",
            )
        return cls(int(draws), int(items), "popularity" if by == "popularity" else "uniform")
