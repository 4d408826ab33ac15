"""Recommendations: the best items after a history, with names, odds and the rules behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ExplanationError
from llm_influence.modeling.scoring import BestItems, ItemScores
from llm_influence.rendering.lexicon import Lexicon
from llm_influence.rules.book import RuleEffect
from llm_influence.types import History


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item: Item id.
        title: Its name for people; the id where there is none.
        log_odds: Of the item against all others of the catalogue.
        probability: That the item comes next, over the whole catalogue.
        rules: Names of the rules that moved it; log-odds and probability are the model's own.
    """

    item: str
    title: str
    log_odds: float
    probability: float
    rules: tuple[str, ...] = ()


def best_items(
    scores: ItemScores,
    history: History,
    k: int,
    *,
    lexicon: Lexicon,
    effects: Sequence[RuleEffect] = (),
    exclude_seen: bool = True,
    candidates: Sequence[str] | None = None,
) -> list[Recommendation]:
    """The k items that ``scores`` put first, best first; ties go to the earlier catalogue row.

    Args:
        scores: Of one history.
        history: That history.
        k: How many; fewer come back when fewer are allowed.
        lexicon: Knows the items.
        effects: What the rules do after this history.
        exclude_seen: Leave out items of the history.
        candidates: Item ids to choose among; default: the whole catalogue.

    Raises:
        UnknownNameError: An item of the history, or a candidate, is not known.
        ExplanationError: ``k`` is below one.
    """
    if k < 1:
        raise ExplanationError(
            f"k is {k}", where="recommend", expected="at least 1", fix="ask for one item"
        )
    allowed = None if candidates is None else _among(lexicon.catalogue, candidates)
    seen = None
    if exclude_seen:
        seen = torch.from_numpy(lexicon.item_codes(history).astype(np.int64))[None]
    return _described(scores.best(k, seen=seen, allowed=allowed), lexicon.catalogue, effects)


def _among(catalogue: Catalogue, candidates: Sequence[str]) -> Tensor:
    """(I,) True for the candidates."""
    allowed = torch.zeros(len(catalogue), dtype=torch.bool)
    allowed[torch.from_numpy(catalogue.index(candidates).astype(np.int64))] = True
    return allowed


def _described(
    best: BestItems, catalogue: Catalogue, effects: Sequence[RuleEffect]
) -> list[Recommendation]:
    found = []
    columns = (best.codes[0], best.candidate[0], best.log_odds[0])
    for code, candidate, odds in zip(*(c.tolist() for c in columns), strict=True):
        if candidate:
            item, title = catalogue.ids[code].as_py(), catalogue.titles[code]
            probability = float(torch.sigmoid(torch.tensor(odds, dtype=torch.float64)))
            rules = tuple(effect.rule for effect in effects if effect.items[code])
            found.append(Recommendation(item, title or item, odds, probability, rules))
    return found
