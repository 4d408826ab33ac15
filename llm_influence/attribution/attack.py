"""How few events, removed or injected, change the first recommendation: a greedy attack.

Each step takes one event out, or puts one in behind the last, so that the lead of the
recommendation over the best other item falls most. Every choice is verified by running the model:
a step tries the events that harmed the lead most when they were last tried, and of the items those
that the gradient promises most of (HotFlip, Ebrahimi et al. 2018, arXiv:1712.06751). What the
attack finds is enough to change the recommendation; fewer events might do as well
(`attribution.counterfactual` proves minimal removals).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from llm_influence.errors import ExplanationError
from llm_influence.evaluation.metrics import seen_items
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import collate
from llm_influence.rendering.template import FIELDS
from llm_influence.types import CodeNames, FloatArray, History, IntArray

Kind = Literal["removal", "injection"]
KINDS: tuple[Kind, ...] = ("removal", "injection")
ROWS = 128
"""Histories read at a time; affects memory and speed alone."""
PAUSE = 60
"""Seconds between the last event and an injected one."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What it took.

    Attributes:
        user_id: Whose recommendation.
        kind: ``removal`` or ``injection``.
        item: Id of the recommendation attacked.
        changed: Places of removed events among those that the model reads, or ids of injected
            items, in the order of the steps.
        leads: Lead of the recommendation in score before each step and after the last; below 0
            where it fell.
        flipped_to: Id of the first recommendation at the end; None if the attack failed.
        evaluations: Histories read.
    """

    user_id: str
    kind: Kind
    item: str
    changed: tuple[int | str, ...]
    leads: tuple[float, ...]
    flipped_to: str | None
    evaluations: int

    @property
    def needed(self) -> int | None:
        """Events that were enough; None if the budget was not."""
        return None if self.flipped_to is None else len(self.changed)


def attack(
    model: InfluenceModel, history: History, kind: Kind, *, budget: int = 5, tried: int = 16
) -> Attack:
    """Attack the first recommendation of one user.

    Items of the history are no recommendations, nor are injected ones; the attacked item itself is
    never injected.

    Args:
        model: The model; for injections it reads tokens of items (style ``token``).
        history: At least two events.
        kind: ``removal`` or ``injection``.
        budget: Most events removed or injected; at least one event is left.
        tried: Events or items tried in each step; the first step of a removal tries all.

    Raises:
        ExplanationError: The history is too short, an option is out of range, or the model reads
            words instead of items.
    """
    _check(model, history, kind, budget, tried)
    search: _Removals | _Injections = (
        _Removals(model, history) if kind == "removal" else _Injections(model, history)
    )
    for _ in range(budget):
        if search.leads[-1] < 0 or not search.step(tried):
            break
    ids, changed = model.catalogue.ids, list[int | str](search.changed)
    return Attack(
        user_id=history.user_id,
        kind=kind,
        item=ids[search.item].as_py(),
        changed=tuple(changed),
        leads=tuple(search.leads),
        flipped_to=ids[search.first].as_py() if search.leads[-1] < 0 else None,
        evaluations=search.evaluations,
    )


def _check(model: InfluenceModel, history: History, kind: str, budget: int, tried: int) -> None:
    wrong = ""
    if kind not in KINDS:
        wrong = f"kind is {kind!r}"
    elif len(history) < 2:
        wrong = f"the history has {len(history)} event{'s' if len(history) != 1 else ''}"
    elif budget < 1 or tried < 1:
        wrong = f"budget is {budget}, tried {tried}"
    elif kind == "injection" and model.encoder.style != "token":
        wrong = "a model that reads words has no tokens of items to inject"
    if wrong:
        raise ExplanationError(
            wrong,
            where=f"attack on user {history.user_id!r}",
            expected=f"one of {', '.join(KINDS)}, at least two events, at least one change and try",
            fix="leave the user out, or correct the option",
        )


class _Search:
    """A history under attack, and the lead its recommendation still has."""

    def __init__(self, model: InfluenceModel, history: History) -> None:
        self.model = model
        codes = model.encoder.vocabulary.item_codes(history)
        code_names = CodeNames(model.catalogue.ids, history.code_names.behaviors)
        self.history = replace(history, items=codes.astype(np.int32), code_names=code_names)
        self.seen = codes.astype(np.int64)
        self.evaluations = 0
        found = model.score([self.history]).best(1, seen=seen_items([self.seen]))
        self.item = self.first = int(found.codes[0, 0])
        leads, _ = self.ask([self.history], [self.seen])
        self.leads = [float(leads[0])]

    def ask(
        self, histories: Sequence[History], seen: Sequence[IntArray]
    ) -> tuple[FloatArray, IntArray]:
        """(N,) leads of the item after each history, and (N,) what is then recommended."""
        leads, firsts = [], []
        for start in range(0, len(histories), ROWS):
            scores = self.model.score(histories[start : start + ROWS])
            found = scores.best(2, seen=seen_items(seen[start : start + ROWS]))
            codes = found.codes
            others = torch.where(codes[:, 0] == self.item, codes[:, 1], codes[:, 0])
            lead = scores.at(torch.full_like(others, self.item)) - scores.at(others)
            # equal scores: the place in the list decides, as it does for the user
            stays = codes[:, 0] == self.item
            lead = torch.where(stays == (lead >= 0), lead, torch.full_like(lead, -1e-12))
            leads.append(lead.cpu().numpy())
            firsts.append(codes[:, 0].cpu().numpy())
        self.evaluations += len(histories)
        return np.concatenate(leads), np.concatenate(firsts)


class _Removals(_Search):
    """Events of what the model reads, taken out one by one."""

    def __init__(self, model: InfluenceModel, history: History) -> None:
        super().__init__(model, history)
        self.history = model.encoder.trim(self.history)
        self.changed: list[int] = []
        self._harm = dict.fromkeys(range(len(self.history)), -np.inf)

    def step(self, tried: int) -> bool:
        """Remove the event whose loss hurts most; whether there was one to remove."""
        left = [place for place in self._harm if place not in self.changed]
        if len(left) < 2:
            return False
        left = sorted(left, key=lambda place: self._harm[place])
        left = left[:tried] if self.changed else left
        kept = np.ones((len(left), len(self.history)), dtype=bool)
        kept[:, self.changed] = False
        kept[np.arange(len(left)), left] = False
        leads, firsts = self.ask(
            [self.history.keep(mask) for mask in kept], [self.seen] * len(left)
        )
        self._harm |= dict(zip(left, leads.tolist(), strict=True))
        best = int(leads.argmin())
        self.changed.append(left[best])
        self.leads.append(float(leads[best]))
        self.first = int(firsts[best])
        return True


class _Injections(_Search):
    """Events put in behind the last one, like it in all but the item."""

    def __init__(self, model: InfluenceModel, history: History) -> None:
        super().__init__(model, history)
        self._codes: list[int] = []

    @property
    def changed(self) -> list[str]:
        """Ids of the injected items."""
        return [self.model.catalogue.ids[code].as_py() for code in self._codes]

    def step(self, tried: int) -> bool:
        """Inject the item that hurts most of those the gradient promises most of."""
        items = self._promising(tried)
        if not len(items):
            return False
        longer = [self._with(int(item)) for item in items]
        leads, firsts = self.ask(longer, [np.append(self.seen, item) for item in items])
        best = int(leads.argmin())
        self.history, self.seen = longer[best], np.append(self.seen, items[best])
        self._codes.append(int(items[best]))
        self.leads.append(float(leads[best]))
        self.first = int(firsts[best])
        return True

    def _with(self, item: int) -> History:
        history, now = self.history, self.history.timestamps[-1] + PAUSE
        asked = history.query_time
        return replace(
            history,
            items=np.append(history.items, np.int32(item)),
            behaviors=np.append(history.behaviors, history.behaviors[-1]),
            timestamps=np.append(history.timestamps, now),
            values=np.append(history.values, history.values[-1]),
            query_time=None if asked is None else max(asked, int(now)),
        )

    def _promising(self, tried: int) -> IntArray:
        """(tried,) items whose vectors, as one more last event, promise to lower the lead most."""
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
                promised = model.item_vectors() @ gradient[place].sum(dim=0)
        finally:
            model.train(was_training)
        promised[blocked] = torch.inf
        order = promised.argsort(stable=True)[: min(tried, len(promised) - len(blocked.unique()))]
        found: IntArray = order.cpu().numpy()
        return found
