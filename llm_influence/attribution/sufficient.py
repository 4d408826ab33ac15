"""The events that alone keep a recommendation: the smallest sufficient history.

A counterfactual is the smallest removal that changes a recommendation. This is its counterpart: the
smallest set of events after which, without all others, the same item is still recommended first
(sufficient input subsets: Carter et al. 2019, arXiv:1810.03805). Every set is verified by running
the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

from llm_influence.attribution.counterfactual import Removals
from llm_influence.attribution.registry import user_generator
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History


@dataclass(frozen=True, slots=True)
class SufficientEvents:
    """The smallest set of events that alone keeps a recommendation.

    Attributes:
        user_id: The user.
        item: Id of the recommendation.
        kept: Places of the events among those in the context, oldest first; empty if the item is
            recommended without any event.
        minimal: Whether it is proven that no smaller set keeps it.
        proven: All sets of up to this many events were tried.
        evaluations: Model evaluations.
    """

    user_id: str
    item: str
    kept: tuple[int, ...]
    minimal: bool
    proven: int
    evaluations: int


def sufficient_events(
    model: InfluenceModel, history: History, k: int = 1, *, exhaustive: int = 500, seed: int = 0
) -> SufficientEvents:
    """The smallest set of events with which alone the first recommendation stays among the first k.

    All sets of no event, of one, of two, and so on are tried while they number ``exhaustive`` in
    all: the first that works is proven minimal. After that, events are screened by their Shapley
    influence on the lead of the recommendation. The strongest are kept until it stays, and events
    that are not needed are left out again. Items of the whole history stay excluded.

    Args:
        model: The model.
        history: A user's history, at least one event; events beyond the context are not used.
        k: 1: the item stays first; more: it stays among the first k.
        exhaustive: Most evaluations for sets tried exhaustively.
        seed: Seed of the screening, mixed with the user's id.

    Raises:
        ExplanationError: No event, ``k`` below 1 or fewer than k other items to recommend.
    """
    search = Removals(model, history, k)
    players, proven = search.players, -1
    while proven < players and search.evaluations + comb(players, proven + 1) <= exhaustive + 1:
        proven += 1
        found = _working(search, combinations(range(players), proven))
        if found is not None:
            return _result(search, history, found, proven, minimal=True)
    order = search.screen(user_generator(seed, history.user_id))
    best = _working(search, (tuple(order[:size]) for size in range(1, players + 1)))
    kept = best if best is not None else tuple(range(players))
    while True:
        fewer = _working(search, (tuple(e for e in kept if e != out) for out in reversed(kept)))
        if fewer is None:
            break
        kept = fewer
    return _result(search, history, kept, proven, minimal=len(kept) == proven + 1)


def _working(search: Removals, kept: Iterable[Sequence[int]]) -> tuple[int, ...] | None:
    """The first of the sets with which alone the recommendation stays, with the smallest size."""
    sets = [tuple(one) for one in kept]
    removals = [[e for e in range(search.players) if e not in set(one)] for one in sets]
    leads = search.try_all(removals)
    working = [
        (len(one), -lead, place)
        for place, (one, lead) in enumerate(zip(sets, leads, strict=True))
        if lead >= 0
    ]
    return sets[min(working)[2]] if working else None


def _result(
    search: Removals, history: History, kept: Sequence[int], proven: int, *, minimal: bool
) -> SufficientEvents:
    return SufficientEvents(
        user_id=history.user_id,
        item=search.item_id,
        kept=tuple(sorted(kept)),
        minimal=minimal,
        proven=max(proven, 0),
        evaluations=search.evaluations,
    )
