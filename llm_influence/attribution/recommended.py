"""Recommendations as an explanation sees them: the best unseen items, and how a slate is ranked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_influence.evaluation.metrics import seen_items
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores
from llm_influence.types import History

ROWS = 64
"""Histories whose recommendations are computed at a time; affects memory and speed alone."""


def best_unseen(
    model: InfluenceModel, histories: Sequence[History], k: int
) -> tuple[Tensor, Tensor]:
    """The recommendations of N histories.

    Returns:
        (N, K) codes of the k best items that a history does not hold, best first, -1 where there
        are fewer; and (N, S) codes of the items it holds, -1 where there are fewer. K is k, or the
        size of a smaller catalogue.
    """
    seen, shown = seen_codes(model, histories), []
    for start in range(0, len(histories), ROWS):
        part = slice(start, start + ROWS)
        best = model.score(histories[part]).best(k, seen=seen[part])
        shown.append(best.shown().cpu())
    return torch.cat(shown), seen


def seen_codes(model: InfluenceModel, histories: Sequence[History]) -> Tensor:
    """(N, S) codes of the items of each history, -1 where there are fewer.

    There is none where the model's protocol has seen items among the candidates.
    """
    if not model.exclude_seen:
        return torch.full((len(histories), 1), -1)
    return seen_items([model.encoder.vocabulary.item_codes(history) for history in histories])


def candidates(model: InfluenceModel, histories: Sequence[History], seen: Tensor) -> list[int]:
    """Number of items of each history that are neither ``seen`` nor excluded by the rules."""
    changes = model.rule_scores(histories)
    if changes is None:
        return [model.num_items - len(set(row) - {-1}) for row in seen.tolist()]
    free = ~changes.isneginf().cpu()
    rows, places = (seen >= 0).nonzero(as_tuple=True)
    free[rows, seen[rows, places]] = False
    return free.sum(dim=1).tolist()


def slate_ndcg(logits: Tensor, slate: Tensor, seen: Tensor) -> Tensor:
    """NDCG@K of a ranking against a slate in its own order.

    With a slate of items i_1 to i_K, item i_j has the graded relevance K + 1 - j. The ranking is
    that of all items outside ``seen``, equal logits ordered by row of the catalogue, and ``r(i)``
    is an item's place in it, from 1:

        DCG = sum over j with r(i_j) <= K of (K + 1 - j) / log2(1 + r(i_j))
        value = DCG / (sum over j of (K + 1 - j) / log2(1 + j))

    It is 1 where the first K items are the slate in its order, and 0 where none of the slate is
    among them. It is constant between changes of order, so it has no useful gradient.

    Args:
        logits: (B, I) item logits.
        slate: (B, K) item codes, best first, -1 at the end where a slate is shorter.
        seen: (B, S) codes of items that are never ranked, -1 where there are fewer.

    Returns:
        (B,) values between 0 and 1.
    """
    slate = slate.to(logits.device)
    held = slate >= 0
    places = torch.arange(slate.shape[1], device=logits.device)
    discounts = 1 / torch.log2(places.double() + 2)
    relevance = (held.sum(dim=1, keepdim=True) - places).clamp(min=0).double()
    best = ItemScores.of(logits).best(slate.shape[1], seen=seen.to(logits.device))
    same = (best.codes[:, :, None] == slate[:, None, :]) & best.candidate[:, :, None]
    gained = (same * relevance[:, None, :]).sum(dim=2)
    counted = gained * held  # a shorter slate is compared with as many places
    return (counted * discounts).sum(dim=1) / (relevance * discounts).sum(dim=1)
