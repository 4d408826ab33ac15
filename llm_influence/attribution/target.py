"""Targets of an explanation: one number a history, in log-odds but for slates and regressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit
from torch import Tensor

from llm_influence.attribution.drawn import Drawn
from llm_influence.attribution.recommended import (
    best_unseen,
    candidates,
    seen_codes,
    slate_ndcg,
)
from llm_influence.errors import ExplanationError, check_type, choices, out_of_range, unknown
from llm_influence.modeling.model import InfluenceModel, Prediction
from llm_influence.modeling.scoring import log_odds
from llm_influence.types import FloatArray, History, IntArray

TOP = "top1"
NAMED = 3
"""Items listed in the display name of a slate."""


@dataclass(frozen=True, slots=True)
class Item:
    """Log-odds that this item comes next, against all others of the catalogue."""

    id: str


@dataclass(frozen=True, slots=True)
class Behavior:
    """Log-odds that this behaviour comes next, against all others."""

    name: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """Difference of the logits of two items: why ``chosen`` and not ``other``."""

    chosen: str
    other: str


@dataclass(frozen=True, slots=True)
class Slate:
    """The list of the ``k`` recommendations and their order.

    The slate is what is recommended after the whole history, without the items of the history.
    The value is the NDCG@k of the ranking against the slate's own order (`slate_ndcg`): 1 with all
    events, 0 if none of the slate is among the first k. It is not a log-odds and has no gradient:
    methods that remove events explain it, gradient methods refuse it.
    """

    k: int = 10


@dataclass(frozen=True, slots=True)
class Feedback:
    """Expected feedback if this item came next: log-odds of a click, a purchase, a like.

    An ordinal head gives the log-odds of a label of at least ``positive_from``; a regression head
    is explained in the units of the label.

    Attributes:
        item: Item id of the candidate.
        behavior: Behaviour with the candidate; default: the one with most labels.
    """

    item: str
    behavior: str | None = None


Kind = Literal["item", "behavior", "contrast", "slate", "feedback", "feedback_value", "drawn"]
Target = Literal["top1"] | str | Item | Behavior | Contrast | Slate | Feedback | Drawn
"""``"top1"`` is each history's own first recommendation among unseen items. Any other string is an
item id or a behaviour; use `Item` or `Behavior` where a name could be both."""

TARGETS = (str, Item, Behavior, Contrast, Slate, Feedback, Drawn)


@dataclass(frozen=True, slots=True, eq=False)
class BoundTarget:
    """A target fixed for N histories: it stays the same while events are removed.

    Attributes:
        kind: ``item``, ``behavior``, ``contrast``, ``slate``, ``feedback`` in log-odds,
            ``feedback_value``, that of a regression in the label's units, or ``drawn``.
        codes: (N,) item or behaviour codes; of a slate or a draw (N, K) item codes, -1 where a
            slate is shorter.
        other: (N,) item codes that a contrast subtracts, else None.
        ids: N ids as text.
        names: N display names.
        seen: (N, S) codes of items that a slate leaves out, padded with -1; else None.
        behaviors: (N,) behaviour codes of the candidates of feedback, else None.
        middle: A value above it supports the target: 0 of log-odds, the mean label of a regression.
        changes: (N, I) what rules add to the logits of a slate, for the whole history; else None.
        places: N pairs of the rank of an item and the number of candidates, None for an item that
            is no candidate; None for other targets, and where it is not known yet (`with_ranks`).
    """

    kind: Kind
    codes: Tensor
    other: Tensor | None
    ids: Sequence[str]
    names: Sequence[str]
    seen: Tensor | None = None
    behaviors: Tensor | None = None
    middle: float = 0.0
    changes: Tensor | None = None
    places: Sequence[tuple[int, int] | None] | None = None

    @property
    def has_probability(self) -> bool:
        """Whether values are log-odds of a probability."""
        return self.kind not in ("slate", "feedback_value", "drawn")

    @property
    def differentiable(self) -> bool:
        """Whether `values` has a useful gradient."""
        return self.kind != "slate"

    def probabilities(self, full: FloatArray) -> FloatArray:
        """(N,) probability of the target at (N,) values; nan if values are not log-odds."""
        return expit(full) if self.has_probability else np.full(len(full), np.nan)

    def values(self, prediction: Prediction, rows: Tensor) -> Tensor:
        """(B,) target values of predictions for the histories numbered ``rows`` (B,)."""
        codes = self.codes[rows].to(prediction.item_logits.device)
        if self.seen is not None:
            logits = prediction.item_logits
            if self.changes is not None:
                logits = logits + self.changes[rows].to(logits)
            return slate_ndcg(logits, codes, self.seen[rows])
        if self.kind == "behavior":
            return log_odds(prediction.behavior_logits, codes)
        if self.behaviors is not None and prediction.feedback is not None:
            return prediction.feedback(codes, self.behaviors[rows])
        if self.kind == "drawn":
            logits = prediction.item_logits
            return logits.gather(1, codes).mean(dim=1) - logits.mean(dim=1)
        if self.other is None:
            return log_odds(prediction.item_logits, codes)
        other = self.other[rows].to(codes.device)
        both = prediction.item_logits.gather(1, torch.stack([codes, other], dim=1))
        return both[:, 0] - both[:, 1]


def with_ranks(
    targets: Sequence[BoundTarget], model: InfluenceModel, histories: Sequence[History]
) -> list[BoundTarget]:
    """The targets of N histories, items among them with their ranks among the candidates.

    The histories are read once for all items whose ranks are unknown.
    """
    missing = [target.kind == "item" and target.places is None for target in targets]
    if not any(missing):
        return list(targets)
    seen, scores = seen_codes(model, histories), model.score(histories)
    sizes = candidates(model, histories, seen)

    def placed(target: BoundTarget) -> BoundTarget:
        hidden = (seen == target.codes[:, None]).any(dim=1) | scores.excluded(target.codes)
        pairs = zip(scores.ranks(target.codes, seen).tolist(), sizes, strict=True)
        return replace(
            target,
            places=[
                None if out else pair for pair, out in zip(pairs, hidden.tolist(), strict=True)
            ],
        )

    pairs = zip(targets, missing, strict=True)
    return [placed(target) if unknown else target for target, unknown in pairs]


def bind(target: Target, model: InfluenceModel, histories: Sequence[History]) -> BoundTarget:
    """Fix ``target`` for these histories.

    Raises:
        ExplanationError: The item or behaviour is not known to the model, a name could be either,
            ``top1`` or a slate finds no unseen item, or the model predicts no such feedback.
    """
    expected = "'top1', an item id or a behaviour as text, or an object such as Item('4')"
    check_type(ExplanationError, "target", target, TARGETS, expected=expected)
    if target == TOP:
        codes, seen = _recommended(model, histories, 1, "top1")
        sizes = candidates(model, histories, seen)
        first = bind_items(model, codes[:, 0].tolist())
        return replace(first, places=[(1, size) for size in sizes])
    if isinstance(target, str):
        target = _classify(target, model)
    count = len(histories)
    if isinstance(target, Slate):
        return _slate(model, histories, target.k)
    if isinstance(target, Item):
        return bind_items(model, [_item_code(target.id, model)] * count)
    if isinstance(target, Feedback):
        return _feedback(model, target, count)
    if isinstance(target, Drawn):
        drawn = target.codes(histories, _counts(model, target))
        sets = [bind_items(model, codes) for codes in drawn.tolist()]
        ids = [", ".join(own.ids) for own in sets]
        names = ["; ".join(own.names[:NAMED]) for own in sets]
        return BoundTarget("drawn", torch.from_numpy(drawn), None, ids, names)
    if isinstance(target, Behavior):
        code = _behavior_code(target.name, model)
        same = [target.name] * count
        return BoundTarget("behavior", torch.full((count,), code), None, same, same)
    chosen, other = _item_code(target.chosen, model), _item_code(target.other, model)
    both = bind_items(model, [chosen, other])
    return BoundTarget(
        "contrast",
        torch.full((count,), chosen),
        torch.full((count,), other),
        [" over ".join(both.ids)] * count,
        [" over ".join(both.names)] * count,
    )


def parse_target(text: str) -> Target:
    """A target from the command line.

    Args:
        text: ``top1``, ``item:42``, ``behavior:click``, ``contrast:42,50``, ``slate:10``,
            ``feedback:42``, ``feedback:42,purchase``, ``drawn:4``, ``drawn:4,16``,
            ``drawn:4,16,popularity``, or a bare item id or behaviour.

    Raises:
        ExplanationError: The kind is known and the rest of the text does not fit it.
    """
    kind, colon, rest = text.partition(":")
    first, comma, second = rest.partition(",")
    if not colon:
        return text
    if kind == "item":
        return Item(rest)
    if kind == "behavior":
        return Behavior(rest)
    if kind == "feedback":
        if not first or (comma and not second):
            raise _unreadable(text, "feedback:ITEM or feedback:ITEM,BEHAVIOR")
        return Feedback(first, second or None)
    if kind == "contrast":
        if not (first and second):
            raise _unreadable(text, "contrast:CHOSEN,OTHER")
        return Contrast(first, second)
    if kind == "slate":
        if not rest.isdecimal():
            raise _unreadable(text, "slate:K, as in slate:10")
        return Slate(int(rest))
    return Drawn.parse(rest) if kind == "drawn" else text


def _unreadable(text: str, expected: str) -> ExplanationError:
    return ExplanationError(
        f"cannot read {text!r}", where="target", expected=expected, fix=f"write {expected}"
    )


def _classify(name: str, model: InfluenceModel) -> Item | Behavior:
    is_item = int(model.catalogue.find(pa.array([name], pa.string()))[0]) >= 0
    is_behavior = name in model.encoder.vocabulary.behaviors
    if is_item and is_behavior:
        raise ExplanationError(
            f"{name!r} is both an item and a behaviour",
            where="target",
            expected="a name that can be only one of them",
            fix=f"write Item({name!r}) or Behavior({name!r}); item:{name} on the command line",
        )
    return Behavior(name) if is_behavior else Item(name)


def _item_code(item: str, model: InfluenceModel) -> int:
    check_type(ExplanationError, "item of the target", item, str, expected="an item id as text")
    code = int(model.catalogue.find(pa.array([item], pa.string()))[0])
    if code < 0:
        behaviors = model.encoder.vocabulary.behaviors
        raise ExplanationError(
            f"{item!r} is no item of the model's catalogue",
            where="target",
            expected=f"'top1', one of {len(model.catalogue)} item ids, or a behaviour "
            f"({choices(behaviors, item)})",
            fix="check the id, or add the item with model.add_items(item_table)",
        )
    return code


def _behavior_code(name: str, model: InfluenceModel) -> int:
    known = model.encoder.vocabulary.behaviors
    if name not in known:
        raise unknown(
            ExplanationError,
            "behaviour",
            name,
            known,
            where="target",
            fix="name a behaviour of the training log",
        )
    return known.index(name)


def bind_items(model: InfluenceModel, codes: Sequence[int]) -> BoundTarget:
    """The log-odds of one item a history, by (N,) catalogue rows."""
    ids = [model.catalogue.ids[code].as_py() for code in codes]
    names = [model.catalogue.titles[code] or item for code, item in zip(codes, ids, strict=True)]
    return BoundTarget("item", torch.tensor(codes, dtype=torch.long), None, ids, names)


def _counts(model: InfluenceModel, target: Drawn) -> IntArray:
    """(I,) training events by item; zeros where a draw does not need them."""
    counts = model.encoder.vocabulary.counts
    if counts is None and target.by == "popularity":
        raise ExplanationError(
            "the model has no counts of its items",
            where="target drawn",
            expected="a model folder with counts.npy",
            fix="fine-tune again, or draw uniformly: drawn:DRAWS",
        )
    return np.zeros(len(model.catalogue), np.int64) if counts is None else counts


def _feedback(model: InfluenceModel, target: Feedback, count: int) -> BoundTarget:
    scale, code = model.trained_feedback.scale, _item_code(target.item, model)
    behavior = scale.behaviors[0] if target.behavior is None else target.behavior
    if behavior not in scale.behaviors:
        raise ExplanationError(
            f"no feedback on behaviour {behavior!r} was in training",
            where=f"target {target}",
            expected=choices(scale.behaviors, behavior),
            fix="name one of these, or leave the behaviour out",
        )
    item = bind_items(model, [code] * count)
    number = model.encoder.vocabulary.behaviors.index(behavior)
    regression = model.config.feedback_head.kind == "regression"
    same = target.behavior is None
    return replace(
        item,
        kind="feedback_value" if regression else "feedback",
        ids=item.ids if same else [f"{name},{behavior}" for name in item.ids],
        names=item.names if same else [f"{name} ({behavior})" for name in item.names],
        behaviors=torch.full((count,), number),
        middle=scale.mean if regression else 0.0,
    )


def _slate(model: InfluenceModel, histories: Sequence[History], k: int) -> BoundTarget:
    check_type(ExplanationError, "k of a slate", k, Integral, expected="a whole number")
    if k < 1:
        raise out_of_range(ExplanationError, "k of a slate", k, expected="at least 1")
    codes, seen = _recommended(model, histories, k, "slate")
    lists = [bind_items(model, [code for code in row if code >= 0]) for row in codes.tolist()]
    return BoundTarget(
        "slate",
        codes,
        None,
        [", ".join(slate.ids) for slate in lists],
        [_slate_name(slate.names) for slate in lists],
        seen,
        changes=model.rule_scores(histories),
    )


def _slate_name(names: Sequence[str]) -> str:
    """``top 10: A; B; C; …``: the length of the list and its first items."""
    head = [*names[:NAMED], *(["…"] if len(names) > NAMED else [])]
    return f"top {len(names)}: {'; '.join(head)}"


def _recommended(
    model: InfluenceModel, histories: Sequence[History], k: int, target: str
) -> tuple[Tensor, Tensor]:
    """`best_unseen`, at least one item for every history."""
    codes, seen = best_unseen(model, histories, k)
    if (codes[:, 0] < 0).any():
        raise ExplanationError(
            "a history contains every item of the catalogue",
            where=f"target {target!r}",
            expected="at least one unseen item to recommend",
            fix="explain a named item instead",
        )
    return codes, seen
