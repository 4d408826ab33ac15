"""The recommenders that any model must beat, behind the same protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_influence.config import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.ranking import evaluate
from llm_influence.types import History

NEIGHBOURS = (10, 20, 50, 100, 200, 500)


class Popularity:
    """Every item's number of training events, the same for everyone."""

    name = "popularity"

    def __init__(self, train: BehaviorLog) -> None:
        counts = np.bincount(train.items, minlength=len(train.catalogue))
        self._counts = torch.from_numpy(counts.astype(np.float32))

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) counts."""
        return self._counts.expand(len(histories), -1)


class ItemKNN:
    """Item-based neighbours (Sarwar et al. 2001).

    An item's score is the sum, over the history's items, of their cosine similarity by the users
    they share, each item counting only its ``neighbours`` most similar ones.
    """

    name = "item-kNN"

    def __init__(self, train: BehaviorLog, neighbours: int) -> None:
        self.neighbours = neighbours
        users = np.repeat(np.arange(len(train)), np.diff(train.offsets))
        bought = torch.zeros(len(train), len(train.catalogue))
        bought[torch.from_numpy(users), torch.from_numpy(train.items.astype(np.int64))] = 1
        shared = bought.T @ bought
        norms = shared.diagonal().sqrt().clamp(min=1)
        similar = shared / norms[:, None] / norms
        similar.fill_diagonal_(0)
        k = min(neighbours, similar.shape[1])
        best = similar.topk(k, dim=1)
        self._similar = torch.zeros_like(similar).scatter(1, best.indices, best.values)

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) summed similarities."""
        rows = [self._similar[torch.from_numpy(h.items.astype(np.int64))] for h in histories]
        return torch.stack([row.sum(dim=0) for row in rows])


def best_item_knn(
    train: BehaviorLog, validation: EvaluationSet, config: EvaluationConfig
) -> ItemKNN:
    """The item-kNN whose number of neighbours does best on validation."""
    tried = [ItemKNN(train, neighbours) for neighbours in NEIGHBOURS]
    return max(tried, key=lambda knn: evaluate(knn, validation, config)[0][f"ndcg@{config.cutoff}"])
