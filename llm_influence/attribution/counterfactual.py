"""Which events change a recommendation: minimal counterfactual histories, and greedy attacks.

A counterfactual is the smallest removal of events that changes the recommendation, with what is
proven about it. An attack removes or injects events one by one; its result is enough to change the
recommendation, but fewer events might do as well. Every result is verified by running the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.registry import user_generator
from llm_influence.attribution.shapley_process import estimate, plan
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.metrics import seen_items
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.rendering.template import FIELDS
from llm_influence.types import CodeNames, FloatArray, History, IntArray

AttackKind = Literal["removal", "injection"]
ROWS = 128
"""Histories scored at a time; affects memory and speed alone."""
STRONGEST = 12
"""Events among which removals are built up one by one."""
SCREEN = 3
"""Model evaluations an event for the screening by influence."""
PAUSE = 60
"""Seconds between the last event and an injected one."""


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
    search, proven = _Removals(model, history, k), 0
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


def _leads(
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


class _Removals:
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
        self._seen = seen_items([model.encoder.vocabulary.item_codes(history)])
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
        self.try_all([()])

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
            leads, firsts = _leads(self._model, self.item, shorter, seen, self._k)
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


@dataclass(frozen=True, slots=True)
class Attack:
    """The steps of an attack on a recommendation.

    Attributes:
        user_id: The user.
        kind: ``removal`` or ``injection``.
        item: Id of the recommendation attacked.
        changed: Places of removed events among those in the context, or ids of injected items, in
            the order of the steps.
        leads: Lead of the recommendation in score before each step and after the last; below 0
            where it fell.
        flipped_to: Id of the first recommendation at the end; None if the attack failed.
        evaluations: Histories scored.
    """

    user_id: str
    kind: AttackKind
    item: str
    changed: tuple[int | str, ...]
    leads: tuple[float, ...]
    flipped_to: str | None
    evaluations: int

    @property
    def needed(self) -> int | None:
        """Number of changed events; None if the attack failed."""
        return None if self.flipped_to is None else len(self.changed)


def attack(
    model: InfluenceModel, history: History, kind: AttackKind, *, budget: int = 5, tried: int = 16
) -> Attack:
    """Change the first recommendation of one user, greedily, with few events.

    Each step removes an event, or injects one after the last, so that the lead of the
    recommendation over the best other item falls most. A removal tries the events that lowered the
    lead most when last tried. An injection tries the items for which the gradient predicts the
    largest fall (HotFlip, Ebrahimi et al. 2018, arXiv:1712.06751), never the attacked item itself.
    Items of the history and injected ones are not recommended.

    Args:
        model: The model; injections need tokens of items (style ``token``).
        history: At least two events.
        kind: ``removal`` or ``injection``.
        budget: Most events removed or injected; at least one event is left.
        tried: Events or items tried in each step; the first step of a removal tries all.

    Raises:
        ExplanationError: The history is too short, an option is out of range, or the model reads
            words instead of items.
    """
    reasons = {
        f"kind is {kind!r}": kind not in get_args(AttackKind),
        f"events in the history: {len(history)}": len(history) < 2,
        f"budget is {budget}, tried {tried}": budget < 1 or tried < 1,
        "a model that reads words has no tokens of items to inject": kind == "injection"
        and model.encoder.style != "token",
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        expected = "removal or injection, at least two events, at least one change and try"
        where, fix = (
            f"attack on user {history.user_id!r}",
            "leave out the user or correct the option",
        )
        raise ExplanationError(wrong[0], where=where, expected=expected, fix=fix)
    begin = _RemovalAttack if kind == "removal" else _Injection
    steps: _RemovalAttack | _Injection = begin(model, history)
    for _ in range(budget):
        if steps.leads[-1] < 0 or not steps.step(tried):
            break
    ids = model.catalogue.ids
    return Attack(
        user_id=history.user_id,
        kind=kind,
        item=ids[steps.item].as_py(),
        changed=tuple(steps.changed),
        leads=tuple(steps.leads),
        flipped_to=ids[steps.first].as_py() if steps.leads[-1] < 0 else None,
        evaluations=steps.evaluations,
    )


class _Attacked:
    """A history under attack, and the lead that its recommendation still has."""

    def __init__(self, model: InfluenceModel, history: History) -> None:
        self.model = model
        codes = model.encoder.vocabulary.item_codes(history)
        names = CodeNames(model.catalogue.ids, history.code_names.behaviors)
        self.history = replace(history, items=codes.astype(np.int32), code_names=names)
        self.seen = codes.astype(np.int64)
        best = model.score([self.history]).best(1, seen=seen_items([self.seen]))
        self.item = self.first = int(best.codes[0, 0])
        leads, _ = _leads(model, self.item, [self.history], seen_items([self.seen]))
        self.evaluations, self.leads = 1, [float(leads[0])]
        self.changed: list[int | str] = []

    def worst(self, histories: Sequence[History], seen: Sequence[IntArray]) -> FloatArray:
        """Leads after each history; the lowest becomes the lead of the attack."""
        leads, firsts = _leads(self.model, self.item, histories, seen_items(seen))
        self.evaluations += len(histories)
        self.leads.append(float(leads.min()))
        self.first = int(firsts[leads.argmin()])
        return leads


class _RemovalAttack(_Attacked):
    """Events removed one by one."""

    def __init__(self, model: InfluenceModel, history: History) -> None:
        super().__init__(model, history)
        self.history = model.encoder.trim(self.history)
        self._removed: list[int] = []
        self._lowest = dict.fromkeys(range(len(self.history)), -np.inf)

    def step(self, tried: int) -> bool:
        """Remove the event without which the lead is lowest."""
        left = [place for place in self._lowest if place not in self._removed]
        if len(left) < 2:
            return False
        left = sorted(left, key=lambda place: self._lowest[place])
        left = left[:tried] if self._removed else left
        kept = np.ones((len(left), len(self.history)), dtype=bool)
        kept[:, self._removed] = False
        kept[np.arange(len(left)), left] = False
        shorter = [self.history.keep(mask) for mask in kept]
        leads = self.worst(shorter, [self.seen] * len(left))
        self._lowest |= dict(zip(left, leads.tolist(), strict=True))
        self._removed.append(left[int(leads.argmin())])
        self.changed.append(self._removed[-1])
        return True


class _Injection(_Attacked):
    """Events injected after the last one, equal to it in all but the item."""

    def step(self, tried: int) -> bool:
        """Inject the item after which the lead is lowest."""
        items = self._promising(tried)
        if not len(items):
            return False
        longer = [self._with(int(item)) for item in items]
        seen = [np.append(self.seen, item) for item in items]
        best = int(self.worst(longer, seen).argmin())
        self.history, self.seen = longer[best], seen[best]
        self.changed.append(self.model.catalogue.ids[int(items[best])].as_py())
        return True

    def _with(self, item: int) -> History:
        history, now = self.history, self.history.timestamps[-1] + PAUSE
        moment = history.query_time
        return replace(
            history,
            items=np.append(history.items, np.int32(item)),
            behaviors=np.append(history.behaviors, history.behaviors[-1]),
            timestamps=np.append(history.timestamps, now),
            values=np.append(history.values, history.values[-1]),
            query_time=None if moment is None else max(moment, int(now)),
        )

    def _promising(self, tried: int) -> IntArray:
        """(tried,) items for which the gradient predicts the lowest lead, as one more event."""
        model, last = self.model, int(self.history.items[-1])
        batch = collate(model.encoder.encode([self._with(last)])).to(model.device)
        event = batch.num_events[0] - 1
        place = (batch.event_index == event) & (batch.field_index == FIELDS.index("item"))
        was_training = model.training
        model.eval()
        try:
            vectors = model.embed(batch).detach().requires_grad_()
            logits = model(batch, vectors).item_logits[0]
            blocked = torch.from_numpy(np.append(self.seen, self.item)).to(logits.device)
            others = logits.index_fill(0, blocked, -torch.inf)
            (gradient,) = torch.autograd.grad(logits[self.item] - others.max(), vectors)
            with torch.no_grad():
                predicted = model.item_vectors() @ gradient[place].sum(dim=0)
        finally:
            model.train(was_training)
        predicted[blocked] = torch.inf
        free = len(predicted) - len(blocked.unique())
        return predicted.argsort(stable=True)[: min(tried, free)].cpu().numpy()
