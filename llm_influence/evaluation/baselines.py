"""The recommenders that any model must beat, behind the same protocol."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from llm_influence.config import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.ranking import evaluate
from llm_influence.types import History

NEIGHBOURS = (10, 20, 50, 100, 200, 500)
BLOCK = 256
"""Items whose similarities are computed at a time; affects memory alone."""


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
    they share, each item counting only its ``neighbours`` most similar ones. Memory grows with
    items times neighbours, never with items squared.
    """

    name = "item-kNN"

    def __init__(self, train: BehaviorLog, neighbours: int) -> None:
        self._best, self._similar = _nearest(train, min(neighbours, len(train.catalogue)))
        self.neighbours = neighbours

    def with_fewer(self, neighbours: int) -> ItemKNN:
        """The same with only the ``neighbours`` most similar ones of each item."""
        fewer = copy(self)
        fewer.neighbours = neighbours
        fewer._best, fewer._similar = self._best[:, :neighbours], self._similar[:, :neighbours]
        return fewer

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) summed similarities."""
        scores = torch.zeros(len(histories), len(self._best))
        for row, history in zip(scores, histories, strict=True):
            codes = torch.from_numpy(history.items.astype(np.int64))
            row.index_add_(0, self._best[codes].flatten(), self._similar[codes].flatten())
        return scores


def best_item_knn(
    train: BehaviorLog, validation: EvaluationSet, config: EvaluationConfig
) -> ItemKNN:
    """The item-kNN whose number of neighbours does best on validation."""
    widest = ItemKNN(train, max(NEIGHBOURS))
    tried = [widest.with_fewer(neighbours) for neighbours in NEIGHBOURS]
    return max(tried, key=lambda knn: evaluate(knn, validation, config)[0][f"ndcg@{config.cutoff}"])


def _nearest(train: BehaviorLog, neighbours: int) -> tuple[Tensor, Tensor]:
    """(I, K) codes of each item's most similar others and (I, K) cosines, a block at a time.

    Equal similarities are ordered by row of the catalogue.
    """
    items = len(train.catalogue)
    pairs = np.unique(np.stack([train.items, train.rows_of_users()]), axis=1).astype(np.int64)
    bought_by = torch.sparse_coo_tensor(
        torch.from_numpy(pairs), torch.ones(pairs.shape[1]), (items, len(train))
    ).coalesce()
    norms = torch.bincount(bought_by.indices()[0], minlength=items).sqrt().clamp(min=1)
    best, similar = [], []
    for start in range(0, items, BLOCK):
        rows = torch.arange(start, min(start + BLOCK, items))
        block = bought_by.index_select(0, rows).to_dense()  # (C, U)
        cosines = torch.sparse.mm(bought_by, block.T) / norms[:, None] / norms[rows]  # (I, C)
        cosines[rows, rows - start] = 0  # an item is no neighbour of itself
        ranked = cosines.T.sort(dim=1, descending=True, stable=True)
        best.append(ranked.indices[:, :neighbours].clone())
        similar.append(ranked.values[:, :neighbours].clone())
    return torch.cat(best), torch.cat(similar)
