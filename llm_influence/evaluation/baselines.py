"""The recommenders that any model must beat, behind the same protocol.

Recommending by text alone: what anyone can do for an item that nobody has touched.

What anybody can say of feedback and behaviours without a model: to be beaten.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import numpy as np
import torch
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


SHRINKAGE = 5.0
"""Answers of the mean that every item is given beside its own."""


def feedback_references(split: Split, config: FeedbackHeadConfig) -> dict[str, dict[str, float]]:
    """Metrics on the test examples of the mean answer, of all of training and of each item.

    An item's mean is shrunk towards that of all by `SHRINKAGE` answers.
    """
    labels = feedback_labels(split.train, config).astype(np.float64)
    if config.kind != "regression":
        labels = np.where(np.isnan(labels), np.nan, labels >= config.positive_from)
    asked, items = ~np.isnan(labels), len(split.log.catalogue)
    mean = labels[asked].mean()
    total = np.bincount(split.train.items[asked], weights=labels[asked], minlength=items)
    counts = np.bincount(split.train.items[asked], minlength=items)
    means = (total + SHRINKAGE * mean) / (counts + SHRINKAGE)
    rows = split.test
    truth = feedback_labels(rows.log, config)[rows.events]
    known = ~np.isnan(truth)
    answers = {
        "item mean": means[rows.target_items],
        "mean of training": np.full(len(rows), mean),
    }
    return {
        name: _measured(truth[known], answer[known], rows.users[known], config)
        for name, answer in answers.items()
    }


def behavior_references(split: Split) -> dict[str, dict[str, float]]:
    """Metrics on the test examples of the shares of training, and of the last behaviour again."""
    size = len(split.log.code_names.behaviors)
    shares = (np.bincount(split.train.behaviors, minlength=size) + 1.0) / (
        split.train.num_events + size
    )
    last = split.log.behaviors[split.test.events - 1]
    pairs = np.ones((size, size))  # what follows what, each pair counted once more than it was
    follows = split.train.positions()[1:] > 0
    np.add.at(pairs, (split.train.behaviors[:-1][follows], split.train.behaviors[1:][follows]), 1)
    chains = pairs / pairs.sum(axis=1, keepdims=True)
    return {
        "after the last": _behaviors(split.test, chains[last]),
        "shares of training": _behaviors(split.test, np.tile(shares, (len(last), 1))),
    }


def _behaviors(rows: EvaluationSet, chances: FloatArray) -> dict[str, float]:
    targets = rows.target_behaviors
    own = np.log(chances[np.arange(len(targets)), targets])
    return behavior_metrics(targets, chances.argmax(axis=1), own)


def _measured(
    labels: FloatArray, answers: FloatArray, users: np.ndarray, config: FeedbackHeadConfig
) -> dict[str, float]:
    if config.kind == "regression":
        return value_metrics(labels, answers)
    with np.errstate(divide="ignore"):
        odds = np.log(answers) - np.log1p(-answers)
    return feedback_metrics(labels >= config.positive_from, odds, users)
