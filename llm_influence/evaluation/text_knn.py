"""Recommending by text alone: what anyone can do for an item that nobody has touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_influence.config import EvaluationConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.ranking import evaluate
from llm_influence.types import History

LAST = (1, 2, 3, 5, 10, 20, 50)
Pool = Literal["mean", "nearest"]
POOLS: tuple[Pool, ...] = ("mean", "nearest")


class TextKNN:
    """Items whose text is near the text of the last items of the history.

    ``mean``: cosine with the mean of the last items' vectors. ``nearest``: the largest cosine with
    any of them. Nothing is trained and no behaviour is counted, so old and new items are equals.

    Args:
        texts: (I, H) text vectors by item code. Their mean is taken off: it is a direction that
            all texts share.
        last: Items of the history that count.
        pool: How they count together.
    """

    name = "text kNN"

    def __init__(self, texts: Tensor, last: int, pool: Pool = "mean") -> None:
        self._vectors = F.normalize(texts - texts.mean(dim=0), dim=-1)
        self.last, self.pool = last, pool

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) cosines; zeros for an empty history."""
        return torch.stack([self._scores(history) for history in histories])

    def _scores(self, history: History) -> Tensor:
        if not len(history):
            return torch.zeros(len(self._vectors))
        read = self._vectors[torch.from_numpy(history.items[-self.last :]).long()]
        if self.pool == "mean":
            return self._vectors @ F.normalize(read.mean(dim=0), dim=0)
        return (self._vectors @ read.T).max(dim=1).values


def best_text_knn(texts: Tensor, validation: EvaluationSet, config: EvaluationConfig) -> TextKNN:
    """The text kNN whose number of items and way of pooling do best on validation."""
    tried = [TextKNN(texts, last, pool) for pool in POOLS for last in LAST]
    return max(tried, key=lambda knn: evaluate(knn, validation, config)[0][f"ndcg@{config.cutoff}"])
