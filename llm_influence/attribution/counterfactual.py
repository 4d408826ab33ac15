"""Minimal counterfactual history: the fewest events without which something else is recommended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch

from llm_influence.attribution.registry import user_generator
from llm_influence.attribution.shapley_process import estimate, plan
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.metrics import seen_items
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, FloatArray, History

ROWS = 128
"""Histories read at a time; affects memory and speed alone."""
STRONGEST = 12
"""Events among which removals are built up one by one."""
SCREEN = 3
"""Passes an event for the screening influence."""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What it takes to change a recommendation, verified by running the model.

    Attributes:
        user_id: Whose.
        item: Id of the recommendation that is to give way.
        removed: Places of the removed events among those that the model reads, oldest first; empty
            if no removal that was tried changes the recommendation.
        flipped_to: Id of the first recommendation without them; None if there is no change.
        minimal: Whether it is proven that no smaller removal changes it (or, if there is none,
            that no removal at all does).
        proven: All removals of up to this many events were tried; none of them was enough, unless
            it is the one given.
        evaluations: Forward evaluations.
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
    the first that works is proven minimal. Beyond, events are screened by their Shapley influence
    on the lead of the recommendation over the k-th other item; the strongest are removed until it
    falls, removals are also built up one event at a time, and whatever can be put back is put back.
    Items of the whole history stay excluded: an event that is removed is not recommended instead.

    Args:
        model: The model.
        history: A user's history, at least one event; what exceeds the context stays unread.
        k: 1 asks for another first recommendation; more, for the item to leave the first k.
        exhaustive: Most evaluations for removals tried exhaustively.
        seed: Of the screening's draws, mixed with the user's id.

    Raises:
        ExplanationError: No event, ``k`` below 1 or no k other items to recommend.
    """
    search = _Search(model, history, k)
    players = search.players
    proven = 0
    while proven < players and search.evaluations + comb(players, proven + 1) <= exhaustive + 1:
        proven += 1
        search.ask(combinations(range(players), proven))
        if search.best() is not None:
            return search.result(proven, minimal=True)
    if proven == players:
        return search.result(proven, minimal=True)
    order = search.screen(user_generator(seed, history.user_id))
    search.ask(order[:many] for many in range(1, players + 1))
    search.build_up(order[:STRONGEST])
    search.put_back()
    best = search.best()
    return search.result(proven, minimal=best is not None and len(best) == proven + 1)


class _Search:
    """Removals tried so far: the lead that the recommendation keeps without those events."""

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
        self._seen = seen_items([model.encoder.vocabulary.item_codes(history)])
        self.players = len(self._history)
        self._leads: dict[frozenset[int], float] = {}
        self._first: dict[frozenset[int], int] = {}
        self.item = self._recommended()

    @property
    def evaluations(self) -> int:
        """Histories read so far."""
        return len(self._leads)

    def ask(self, removals: Iterable[Sequence[int]]) -> FloatArray:
        """Leads without those events, one a removal, each read once; below 0 where it falls."""
        wanted = [frozenset(map(int, removal)) for removal in removals]
        new = [removal for removal in dict.fromkeys(wanted) if removal not in self._leads]
        for start in range(0, len(new), ROWS):
            self._read(new[start : start + ROWS])
        return np.array([self._leads[removal] for removal in wanted])

    def best(self) -> frozenset[int] | None:
        """The smallest removal that works; of several the one that works most clearly."""
        working = [removal for removal, lead in self._leads.items() if lead < 0]
        return min(working, key=lambda r: (len(r), self._leads[r], sorted(r)), default=None)

    def screen(self, draw: np.random.Generator) -> list[int]:
        """Events by their Shapley influence on the lead, the strongest support first."""
        masks = plan(draw, self.players, max(SCREEN * self.players, 2 * self.players + 2))
        leads = self.ask(np.flatnonzero(~mask).tolist() for mask in masks)
        return np.argsort(-estimate(masks, leads).scores, kind="stable").tolist()

    def build_up(self, events: Sequence[int]) -> None:
        """Remove one event after the other, each time the one that costs the lead most."""
        removed: tuple[int, ...] = ()
        while len(removed) < len(events):
            best = self.best()
            if best is not None and len(best) <= len(removed) + 1:
                return
            tried = [(*removed, event) for event in events if event not in removed]
            removed = tried[int(self.ask(tried).argmin())]

    def put_back(self) -> None:
        """Give events of the best removal back while it still works."""
        best, before = self.best(), None
        while best is not None and best != before:
            self.ask(sorted(best - {event}) for event in sorted(best))
            best, before = self.best(), best

    def result(self, proven: int, *, minimal: bool) -> Counterfactual:
        """The best removal as a record."""
        best, ids = self.best(), self._model.catalogue.ids
        return Counterfactual(
            user_id=self._history.user_id,
            item=ids[self.item].as_py(),
            removed=tuple(sorted(best or ())),
            flipped_to=None if best is None else ids[self._first[best]].as_py(),
            minimal=minimal,
            proven=proven,
            evaluations=self.evaluations,
        )

    def _recommended(self) -> int:
        found = self._model.score([self._history]).best(self._k + 1, seen=self._seen)
        if found.codes.shape[1] <= self._k or not found.candidate.all():
            raise ExplanationError(
                f"no {self._k + 1} items to recommend",
                where=f"counterfactual of user {self._history.user_id!r}",
                expected=f"{self._k + 1} items outside the history",
                fix="use a smaller k or a larger catalogue",
            )
        self.item = int(found.codes[0, 0])
        self.ask([()])
        return self.item

    def _read(self, removals: Sequence[frozenset[int]]) -> None:
        kept: BoolArray = np.ones((len(removals), self.players), dtype=bool)
        for row, removal in zip(kept, removals, strict=True):
            row[list(removal)] = False
        scores = self._model.score([self._history.keep(mask) for mask in kept])
        found = scores.best(self._k + 1, seen=self._seen.expand(len(kept), -1))
        codes = found.codes.cpu()
        others = torch.stack([row[row != self.item][self._k - 1] for row in codes])
        own = scores.at(torch.full_like(others, self.item).to(found.codes.device))
        leads = own - scores.at(others.to(found.codes.device))
        inside = (codes[:, : self._k] == self.item).any(1)
        for removal, lead, stays, first in zip(removals, leads, inside, codes[:, 0], strict=True):
            # equal scores: the place in the list decides, as it does for the user
            self._leads[removal] = float(lead) if bool(stays) == (lead >= 0) else -1e-12
            self._first[removal] = int(first)
