"""What rules changed in one list of recommendations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_influence.modeling.scoring import ItemScores
from llm_influence.rules.book import EXCLUDED, RuleBook
from llm_influence.rules.trace import RuleChange
from llm_influence.types import History

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel


def rule_changes(
    model: InfluenceModel, book: RuleBook, history: History, k: int, *, exclude_seen: bool
) -> list[RuleChange]:
    """See `InfluenceModel.rule_changes`."""
    ruled = model.score([history])
    free = ruled.under(torch.zeros(1, ruled.items, device=model.device))
    seen = None
    if exclude_seen:
        seen = torch.from_numpy(model.encoder.lexicon.item_codes(history).astype(np.int64))[None]
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
