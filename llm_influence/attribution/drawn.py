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
from llm_influence.types import History, IntArray

By = Literal["uniform", "popularity"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Logit of a drawn item, minus the mean logit of all items of the catalogue.

    The mean cancels the sum over all items that probabilities have. So the value changes only by
    what events add to the item itself, beyond what they add to every item.

    The items of a history depend on the seed, the user's id and the number of events alone. They
    are distinct, and the first of eight draws are the same as the first of four.

    Attributes:
        draws: Items of each history; `explain_batch` explains every one.
        by: ``uniform``, or ``popularity``: in proportion to 1 + training events.
        seed: Seed of the draws.
        number: Which of the draws `Explainer.explain` explains, from 0.
    """

    draws: int = 1
    by: By = "uniform"
    seed: int = 0
    number: int = 0

    def codes(self, histories: Sequence[History], counts: IntArray) -> IntArray:
        """(N,) codes of the drawn items of N histories.

        Args:
            histories: The histories.
            counts: (I,) training events by item.

        Raises:
            ExplanationError: The kind of draw is unknown, or there are too few items or draws.
        """
        kinds, where = get_args(By), "target drawn"
        if self.by not in kinds:
            fix = "write drawn:DRAWS,uniform or drawn:DRAWS,popularity"
            raise unknown(ExplanationError, "kind of draw", self.by, kinds, where=where, fix=fix)
        if not 0 <= self.number < self.draws <= len(counts):
            wrong = (self.number, self.draws)
            expected = f"0 <= number < draws <= {len(counts)}, the number of items"
            raise out_of_range(ExplanationError, "(number, draws)", wrong, expected=expected)
        weights = counts + 1.0 if self.by == "popularity" else np.ones(len(counts))
        edges = weights.cumsum()
        return np.array([self._draw(history, edges) for history in histories], dtype=np.int64)

    def _draw(self, history: History, edges: np.ndarray) -> int:
        key = [self.seed, zlib.crc32(history.user_id.encode()), len(history)]
        random = np.random.default_rng(key)
        codes: dict[int, None] = {}
        while len(codes) <= self.number:
            place = np.searchsorted(edges, random.random() * edges[-1], side="right")
            codes[min(int(place), len(edges) - 1)] = None
        return list(codes)[self.number]

    @classmethod
    def parse(cls, text: str) -> Drawn:
        """Read ``DRAWS`` or ``DRAWS,KIND``, what follows ``drawn:`` on the command line.

        Raises:
            ExplanationError: The text is no number of draws, or the kind of draw is unknown.
        """
        draws, _, by = text.partition(",")
        if not draws.isdecimal() or by not in ("", *get_args(By)):
            expected = "drawn:DRAWS, as in drawn:4, or drawn:DRAWS,popularity"
            raise ExplanationError(
                f"cannot read 'drawn:{text}'",
                where="target",
                expected=expected,
                fix=f"write {expected}",
            )
        return cls(int(draws), "popularity" if by == "popularity" else "uniform")
