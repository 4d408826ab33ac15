"""Greedy attacks on a recommendation: events are removed or injected one by one.

The result is enough to change the recommendation, but fewer events might do as well: see
`counterfactual`. Every step is verified by running the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from llm_influence.attribution.counterfactual import leads_of
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.metrics import seen_items
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.rendering.template import FIELDS
from llm_influence.types import CodeNames, FloatArray, History, IntArray

AttackKind = Literal["removal", "injection"]
PAUSE = 60
"""Seconds between the last event and an injected one."""


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
        self.seen = codes.astype(np.int64) if model.exclude_seen else np.empty(0, np.int64)
        best = model.score([self.history]).best(1, seen=seen_items([self.seen]))
        self.item = self.first = int(best.codes[0, 0])
        leads, _ = leads_of(model, self.item, [self.history], seen_items([self.seen]))
        self.evaluations, self.leads = 1, [float(leads[0])]
        self.changed: list[int | str] = []

    def worst(self, histories: Sequence[History], seen: Sequence[IntArray]) -> FloatArray:
        """Leads after each history; the lowest becomes the lead of the attack."""
        leads, firsts = leads_of(self.model, self.item, histories, seen_items(seen))
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
