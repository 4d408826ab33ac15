"""What is explained: one number a history, in log-odds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import torch
from torch import Tensor

from llm_influence.errors import ExplanationError, choices
from llm_influence.evaluation.ranking import seen_items
from llm_influence.modeling.model import InfluenceModel, Prediction, log_odds
from llm_influence.types import History

TOP = "top1"
ROWS = 64
"""Histories whose recommendations are sought at a time; affects memory and speed alone."""


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
    """Why ``chosen`` and not ``other``: the difference of the two items' logits."""

    chosen: str
    other: str


Target = Literal["top1"] | str | Item | Behavior | Contrast
"""``"top1"`` is each history's own first recommendation among unseen items. Any other string is an
item id, or else a behaviour; write `Item` or `Behavior` where a name could be both."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundTarget:
    """A target fixed for N histories: it stays the same while events are removed.

    Attributes:
        kind: ``item``, ``behavior`` or ``contrast``.
        codes: (N,) item or behaviour codes.
        other: (N,) item codes that a contrast subtracts, else None.
        ids: N ids as text.
        names: The same for people.
    """

    kind: Literal["item", "behavior", "contrast"]
    codes: Tensor
    other: Tensor | None
    ids: Sequence[str]
    names: Sequence[str]

    def values(self, prediction: Prediction, rows: Tensor) -> Tensor:
        """(B,) target values of predictions made for the histories numbered ``rows`` (B,)."""
        codes = self.codes[rows].to(prediction.item_logits.device)
        if self.kind == "behavior":
            return log_odds(prediction.behavior_logits, codes)
        if self.other is None:
            return log_odds(prediction.item_logits, codes)
        other = self.other[rows].to(codes.device)
        both = prediction.item_logits.gather(1, torch.stack([codes, other], dim=1))
        return both[:, 0] - both[:, 1]


def bind(target: Target, model: InfluenceModel, histories: Sequence[History]) -> BoundTarget:
    """Fix ``target`` for these histories.

    Raises:
        ExplanationError: The item or behaviour is not known to the model, a name could be either,
            or ``top1`` finds no unseen item.
    """
    if target == TOP:
        return _items(model, _best_unseen(model, histories))
    if isinstance(target, str):
        target = _classify(target, model)
    count = len(histories)
    if isinstance(target, Item):
        return _items(model, [_item_code(target.id, model)] * count)
    if isinstance(target, Behavior):
        code = _behavior_code(target.name, model)
        same = [target.name] * count
        return BoundTarget("behavior", torch.full((count,), code), None, same, same)
    chosen, other = _item_code(target.chosen, model), _item_code(target.other, model)
    both = _items(model, [chosen, other])
    return BoundTarget(
        "contrast",
        torch.full((count,), chosen),
        torch.full((count,), other),
        [" over ".join(both.ids)] * count,
        [" over ".join(both.names)] * count,
    )


def parse_target(text: str) -> Target:
    """A target from the command line: ``top1``, ``item:42``, ``behavior:click``,
    ``contrast:42,50``, or a bare id or behaviour.
    """  # noqa: D205
    kind, colon, rest = text.partition(":")
    if colon and kind == "item":
        return Item(rest)
    if colon and kind == "behavior":
        return Behavior(rest)
    if colon and kind == "contrast":
        chosen, comma, other = rest.partition(",")
        if not (chosen and comma and other):
            raise ExplanationError(
                f"cannot read {text!r}",
                where="target",
                expected="contrast:CHOSEN,OTHER",
                fix="name two item ids with a comma between them",
            )
        return Contrast(chosen, other)
    return text


def _classify(name: str, model: InfluenceModel) -> Item | Behavior:
    is_item = int(model.catalogue.find(pa.array([name], pa.string()))[0]) >= 0
    is_behavior = name in model.encoder.lexicon.behaviors
    if is_item and is_behavior:
        raise ExplanationError(
            f"{name!r} is both an item and a behaviour",
            where="target",
            expected="a name that can be only one of them",
            fix=f"write Item({name!r}) or Behavior({name!r}); item:{name} on the command line",
        )
    return Behavior(name) if is_behavior else Item(name)


def _item_code(item: str, model: InfluenceModel) -> int:
    code = int(model.catalogue.find(pa.array([item], pa.string()))[0])
    if code < 0:
        behaviors = model.encoder.lexicon.behaviors
        raise ExplanationError(
            f"{item!r} is no item of the model's catalogue",
            where="target",
            expected=f"'top1', one of {len(model.catalogue)} item ids, or a behaviour "
            f"({choices(behaviors, item)})",
            fix="check the id, or add the item with model.add_items(item_table)",
        )
    return code


def _behavior_code(name: str, model: InfluenceModel) -> int:
    known = model.encoder.lexicon.behaviors
    if name not in known:
        raise ExplanationError(
            f"unknown behaviour {name!r}",
            where="target",
            expected=choices(known, name),
            fix="name a behaviour of the training log",
        )
    return known.index(name)


def _items(model: InfluenceModel, codes: Sequence[int]) -> BoundTarget:
    ids = [model.catalogue.ids[code].as_py() for code in codes]
    names = [model.catalogue.titles[code] or item for code, item in zip(codes, ids, strict=True)]
    return BoundTarget("item", torch.tensor(codes, dtype=torch.long), None, ids, names)


def _best_unseen(model: InfluenceModel, histories: Sequence[History]) -> list[int]:
    best: list[int] = []
    for start in range(0, len(histories), ROWS):
        part = histories[start : start + ROWS]
        seen = seen_items([model.encoder.lexicon.item_codes(history) for history in part])
        found = model.score(part).best(1, seen=seen)
        best.extend(found.codes[:, 0].tolist())
        if not found.candidate.all():
            raise ExplanationError(
                "a history holds every item of the catalogue",
                where="target 'top1'",
                expected="at least one unseen item to recommend",
                fix="explain a named item instead",
            )
    return best
