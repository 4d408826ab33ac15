"""Baselines: popularity, item-kNN and text kNN for items; means and shares for other heads."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor
from torch.nn import functional as F

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, feedback_labels
from llm_influence.evaluation.metrics import (
    behavior_metrics,
    evaluate,
    feedback_metrics,
    value_metrics,
)
from llm_influence.types import FloatArray, History

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
    """Item-based nearest neighbours (Sarwar et al. 2001).

    The score of an item is the sum of its cosine similarities to the items of the history, by the
    users they share. Each item of the history adds only to its ``neighbours`` most similar items.
    Memory grows with items times neighbours, not with items squared.
    """

    name = "item-kNN"

    def __init__(self, train: BehaviorLog, neighbours: int) -> None:
        self._best, self._similar = _nearest(train, min(neighbours, len(train.catalogue)))
        self.neighbours = neighbours

    def with_fewer(self, neighbours: int) -> ItemKNN:
        """The same with only the ``neighbours`` most similar items of each item."""
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
    """The item-kNN whose number of neighbours (`NEIGHBOURS`) has the best NDCG on validation."""
    widest = ItemKNN(train, max(NEIGHBOURS))
    tried = [widest.with_fewer(neighbours) for neighbours in NEIGHBOURS]
    return max(tried, key=lambda knn: evaluate(knn, validation, config)[0][f"ndcg@{config.cutoff}"])


def _nearest(train: BehaviorLog, neighbours: int) -> tuple[Tensor, Tensor]:
    """(I, K) codes and cosines of each item's most similar items; ties by row of the catalogue."""
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
        cosines[rows, rows - start] = 0  # no item is its own neighbour
        ranked = cosines.T.sort(dim=1, descending=True, stable=True)
        best.append(ranked.indices[:, :neighbours].clone())
        similar.append(ranked.values[:, :neighbours].clone())
    return torch.cat(best), torch.cat(similar)


LAST = (1, 2, 3, 5, 10, 20, 50)
Pool = Literal["mean", "nearest"]
POOLS: tuple[Pool, ...] = ("mean", "nearest")


class TextKNN:
    """Items with a text similar to that of the last items of the history.

    ``mean``: cosine with the mean vector of the last items. ``nearest``: the largest cosine with
    any of them. It uses no training events, so it treats new items as old ones.

    Args:
        texts: (I, H) text vectors by item code. Their mean, which all texts share, is subtracted.
        last: Number of last items that are read.
        pool: ``mean`` or ``nearest``.
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
    """The text kNN whose ``last`` and ``pool`` have the best NDCG on validation."""
    tried = [TextKNN(texts, last, pool) for pool in POOLS for last in LAST]
    return max(tried, key=lambda knn: evaluate(knn, validation, config)[0][f"ndcg@{config.cutoff}"])


SHRINKAGE = 5.0
"""Number of labels at the overall mean that are added to those of every item."""


def feedback_baselines(split: Split, config: FeedbackHeadConfig) -> dict[str, dict[str, float]]:
    """Test metrics of the mean label of the training events: of each item, and of all.

    The mean of an item is shrunk towards the mean of all by `SHRINKAGE` labels.
    """
    labels = feedback_labels(split.train, config).astype(np.float64)
    if config.kind != "regression":
        labels = np.where(np.isnan(labels), np.nan, labels >= config.positive_from)
    known, items = ~np.isnan(labels), len(split.log.catalogue)
    mean = labels[known].mean()
    sums = np.bincount(split.train.items[known], weights=labels[known], minlength=items)
    counts = np.bincount(split.train.items[known], minlength=items)
    means = (sums + SHRINKAGE * mean) / (counts + SHRINKAGE)
    rows = split.test
    truth = feedback_labels(rows.log, config)[rows.events]
    measured = ~np.isnan(truth)
    predictions = {
        "item mean": means[rows.target_items],
        "mean of training": np.full(len(rows), mean),
    }
    return {
        name: _feedback(truth[measured], values[measured], rows.users[measured], config)
        for name, values in predictions.items()
    }


def _feedback(
    labels: FloatArray, values: FloatArray, users: np.ndarray, config: FeedbackHeadConfig
) -> dict[str, float]:
    """Metrics of (N,) predicted labels or probabilities."""
    if config.kind == "regression":
        return value_metrics(labels, values)
    return feedback_metrics(labels >= config.positive_from, logit(values), users)


def behavior_baselines(split: Split) -> dict[str, dict[str, float]]:
    """Test metrics of a Markov chain of behaviours, and of their shares in training.

    Each pair of behaviours, and each behaviour, is counted once more than it occurs.
    """
    size, train = len(split.log.code_names.behaviors), split.train
    shares = (np.bincount(train.behaviors, minlength=size) + 1.0) / (train.num_events + size)
    last = split.log.behaviors[split.test.events - 1]
    pairs = np.ones((size, size))
    follows = train.positions()[1:] > 0
    np.add.at(pairs, (train.behaviors[:-1][follows], train.behaviors[1:][follows]), 1)
    chain = pairs / pairs.sum(axis=1, keepdims=True)
    return {
        "after the last": _behaviors(split.test, chain[last]),
        "shares of training": _behaviors(split.test, np.tile(shares, (len(last), 1))),
    }


def _behaviors(rows: EvaluationSet, probabilities: FloatArray) -> dict[str, float]:
    """Metrics of (N, behaviours) probabilities."""
    targets = rows.target_behaviors
    own = np.log(probabilities[np.arange(len(targets)), targets])
    return behavior_metrics(targets, probabilities.argmax(axis=1), own)
