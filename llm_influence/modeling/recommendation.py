"""Recommendations: the best items after a history, with names, odds and the rules behind them.

What rules changed in one list of recommendations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ExplanationError
from llm_influence.modeling.scoring import BestItems, ItemScores
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.rules.rule_book import EXCLUDED, RuleBook, RuleChange, RuleEffect
from llm_influence.types import History

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel


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
    vocabulary: Vocabulary,
    effects: Sequence[RuleEffect] = (),
    exclude_seen: bool = True,
    candidates: Sequence[str] | None = None,
) -> list[Recommendation]:
    """The k items that ``scores`` put first, best first; ties go to the earlier catalogue row.

    Args:
        scores: Of one history.
        history: That history.
        k: How many; fewer come back when fewer are allowed.
        vocabulary: Knows the items.
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
    allowed = None if candidates is None else _among(vocabulary.catalogue, candidates)
    seen = None
    if exclude_seen:
        seen = torch.from_numpy(vocabulary.item_codes(history).astype(np.int64))[None]
    return _described(scores.best(k, seen=seen, allowed=allowed), vocabulary.catalogue, effects)


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


def rule_changes(
    model: InfluenceModel, book: RuleBook, history: History, k: int, *, exclude_seen: bool
) -> list[RuleChange]:
    """See `InfluenceModel.rule_changes`."""
    ruled = model.score([history])
    free = ruled.under(torch.zeros(1, ruled.items, device=model.device))
    seen = None
    if exclude_seen:
        seen = torch.from_numpy(model.encoder.vocabulary.item_codes(history).astype(np.int64))[None]
    lists = [each.best(k, seen=seen).shown()[0].tolist() for each in (free, ruled)]
    shown = [code for code in dict.fromkeys(lists[0] + lists[1]) if code >= 0]
    before, after = (_places(each, shown, seen) for each in (free, ruled))
    found = []
    for effect in book.effects(history):
        for place, code in enumerate(shown):
            if effect.items[code]:
                item, title = model.catalogue.ids[code].as_py(), model.catalogue.titles[code]
                gone = bool(ruled.excluded(torch.tensor([code]))[0])
                found.append(
                    RuleChange(
                        effect.rule,
                        item,
                        title or item,
                        boost=None if effect.change == EXCLUDED else effect.change,
                        before=before[place],
                        after=None if gone else after[place],
                    )
                )
    return found


def _places(scores: ItemScores, codes: list[int], seen: torch.Tensor | None) -> list[int]:
    """Where items stand among the candidates, from 1."""
    return [int(scores.ranks(torch.tensor([code]), seen)[0]) for code in codes]
