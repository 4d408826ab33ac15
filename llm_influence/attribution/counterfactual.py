"""Minimal counterfactual histories: the fewest events whose removal changes a recommendation.

The record says what is proven about it. Every removal is verified by running the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.recommended import seen_codes
from llm_influence.attribution.registry import user_generator
from llm_influence.attribution.shapley_process import estimate, plan
from llm_influence.errors import ExplanationError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import FloatArray, History, IntArray

ROWS = 128
"""Histories scored at a time; affects memory and speed alone."""
STRONGEST = 12
"""Events among which removals are built up one by one."""
SCREEN = 3
"""Model evaluations an event for the screening by influence."""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The smallest removal of events that changes a recommendation.

    Attributes:
        user_id: The user.
        item: Id of the recommendation before the change.
        removed: Places of the removed events among those in the context, oldest first; empty if no
            removal that was tried changes the recommendation.
        flipped_to: Id of the first recommendation without them; None if there is no change.
        minimal: Whether it is proven that no smaller removal changes it (or, if there is none,
            that no removal at all does).
        proven: All removals of up to this many events were tried, and none but the one given works.
        evaluations: Model evaluations.
    """

    user_id: str
    item: str
    removed: tuple[int, ...]
    flipped_to: str | None
    minimal: bool
    proven: int
    evaluations: int


def counterfactual(
    model: InfluenceModel,
    history: History,
    k: int = 1,
    *,
    exhaustive: int = 500,
    seed: int = 0,
) -> Counterfactual:
    """The smallest removal that takes the first recommendation out of the first k.

    All removals of one event, of two, and so on are tried while they number ``exhaustive`` in all:
    the first that works is proven minimal. After that, events are screened by their Shapley
    influence on the lead of the recommendation over the k-th other item. The strongest are removed
    until it falls, removals are also built up one event at a time, and events that can be put back
    are put back. Items of the whole history stay excluded: a removed event is not recommended.

    Args:
        model: The model.
        history: A user's history, at least one event; events beyond the context are not used.
        k: 1 asks for another first recommendation; more, for the item to leave the first k.
        exhaustive: Most evaluations for removals tried exhaustively.
        seed: Seed of the screening, mixed with the user's id.

    Raises:
        ExplanationError: No event, ``k`` below 1 or fewer than k other items to recommend.
    """
    search, proven = Removals(model, history, k), 0
    players = search.players
    while proven < players and search.evaluations + comb(players, proven + 1) <= exhaustive + 1:
        proven += 1
        search.try_all(combinations(range(players), proven))
        if search.best() is not None:
            return search.result(proven, minimal=True)
    if proven == players:
        return search.result(proven, minimal=True)
    order = search.screen(user_generator(seed, history.user_id))
    search.try_all(order[:many] for many in range(1, players + 1))
    search.build_up(order[:STRONGEST])
    search.put_back()
    best = search.best()
    return search.result(proven, minimal=best is not None and len(best) == proven + 1)


def leads_of(
    model: InfluenceModel, item: int, histories: Sequence[History], seen: Tensor, k: int = 1
) -> tuple[FloatArray, IntArray]:
    """(N,) leads of an item in score over the k-th other item, and (N,) first recommendations.

    A lead is negative where the item is not among the first k; equal scores are decided by the
    place in the list, as they are for the user.
    """
    leads, firsts = [], []
    for start in range(0, len(histories), ROWS):
        part = slice(start, start + ROWS)
        scores = model.score(histories[part])
        codes = scores.best(k + 1, seen=seen[part]).codes
        others = torch.stack([row[row != item][k - 1] for row in codes])
        lead = (scores.at(torch.full_like(others, item)) - scores.at(others)).double()
        stays = (codes[:, :k] == item).any(1)
        leads.append(lead.where(stays == (lead >= 0), -1e-12).cpu().numpy())
        firsts.append(codes[:, 0].cpu().numpy())
    return np.concatenate(leads), np.concatenate(firsts)


class Removals:
    """Removals tried so far, with the lead of the recommendation without those events."""

    def __init__(self, model: InfluenceModel, history: History, k: int) -> None:
        if not len(history) or k < 1:
            raise ExplanationError(
                "the history has no event" if not len(history) else f"k is {k!r}",
                where=f"counterfactual of user {history.user_id!r}",
                expected="at least one event to remove and k of at least 1",
                fix="leave the user out, or correct k",
            )
        self._model, self._k = model, k
        self._history = model.encoder.trim(history)
        self._seen = seen_codes(model, [history])
        self.players = len(self._history)
        self._leads: dict[frozenset[int], float] = {}
        self._first: dict[frozenset[int], int] = {}
        best = model.score([self._history]).best(k + 1, seen=self._seen)
        if best.codes.shape[1] <= k or not best.candidate.all():
            raise ExplanationError(
                f"fewer than {k + 1} items to recommend",
                where=f"counterfactual of user {history.user_id!r}",
                expected=f"{k + 1} items outside the history",
                fix="use a smaller k or a larger catalogue",
            )
        self.item = int(best.codes[0, 0])
        self.item_id = self._id(self.item)
        self.try_all([()])

    def _id(self, code: int) -> str:
        return str(self._model.catalogue.ids[code].as_py())

    @property
    def evaluations(self) -> int:
        """Histories scored so far."""
        return len(self._leads)

    def try_all(self, removals: Iterable[Sequence[int]]) -> FloatArray:
        """Leads without the events of each removal, computed once; below 0 where it falls."""
        sets = [frozenset(map(int, removal)) for removal in removals]
        new = [removal for removal in dict.fromkeys(sets) if removal not in self._leads]
        if new:
            kept = np.ones((len(new), self.players), dtype=bool)
            for row, removal in zip(kept, new, strict=True):
                row[list(removal)] = False
            shorter, seen = [self._history.keep(m) for m in kept], self._seen.expand(len(new), -1)
            leads, firsts = leads_of(self._model, self.item, shorter, seen, self._k)
            self._leads.update(zip(new, leads.tolist(), strict=True))
            self._first.update(zip(new, firsts.tolist(), strict=True))
        return np.array([self._leads[removal] for removal in sets])

    def best(self) -> frozenset[int] | None:
        """The smallest removal that works; of several the one with the lowest lead."""
        working = [removal for removal, lead in self._leads.items() if lead < 0]
        return min(working, key=lambda r: (len(r), self._leads[r], sorted(r)), default=None)

    def screen(self, draw: np.random.Generator) -> list[int]:
        """Events by their Shapley influence on the lead, the strongest support first."""
        masks = plan(draw, self.players, max(SCREEN * self.players, 2 * self.players + 2))
        leads = self.try_all(np.flatnonzero(~mask).tolist() for mask in masks)
        return np.argsort(-estimate(masks, leads).scores, kind="stable").tolist()

    def build_up(self, events: Sequence[int]) -> None:
        """Remove one event after the other, each time the one that costs the lead most."""
        removed: tuple[int, ...] = ()
        while len(removed) < len(events):
            best = self.best()
            if best is not None and len(best) <= len(removed) + 1:
                return
            tried = [(*removed, event) for event in events if event not in removed]
            removed = tried[int(self.try_all(tried).argmin())]

    def put_back(self) -> None:
        """Give events of the best removal back while it still works."""
        best, before = self.best(), None
        while best is not None and best != before:
            self.try_all(sorted(best - {event}) for event in sorted(best))
            best, before = self.best(), best

    def result(self, proven: int, *, minimal: bool) -> Counterfactual:
        """The best removal as a record."""
        best = self.best()
        return Counterfactual(
            user_id=self._history.user_id,
            item=self.item_id,
            removed=tuple(sorted(best or ())),
            flipped_to=None if best is None else self._id(self._first[best]),
            minimal=minimal,
            proven=proven,
            evaluations=self.evaluations,
        )
