"""Item baselines that read the order of events: revisits, transitions, linear models, the memory.

All are fitted on the training events; settings are chosen by NDCG on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.sparse import csr_array
from torch import Tensor

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split
from llm_influence.evaluation.baselines import Popularity, best_item_knn
from llm_influence.evaluation.metrics import Recommender, evaluate
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.gates import ITEM
from llm_influence.modeling.memory import Memory
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.transitions import (
    READ_DECAYS,
    SETTINGS,
    decayed_histories,
    item_codes,
    linear_transitions,
)
from llm_influence.rendering.encoder import NO_ITEM, collate
from llm_influence.types import FloatArray, History

DENSE_ITEMS = 5_000
"""Largest catalogue for which the dense linear models are solved: seconds grow with its cube."""
RIDGES = (30.0, 100.0, 300.0)
"""Ridges of EASE that are tried."""
REVISIT_DECAY = 8.0
"""Distance at which an earlier event of an item counts 1/e as a revisit."""
PRIOR = 1e-3
"""Weight of popularity, which orders the items without a transition or revisit."""


@dataclass
class Linear:
    """Scores that are a linear function of the decayed history.

    Attributes:
        name: Name of the system.
        matrix: (I, I) scores that an item adds, sparse or dense.
        decay: Distance at which an event counts 1/e.
        popularity: (I,) added to all scores.
        last: Only so many last events are read; None: all.
    """

    name: str
    matrix: csr_array | FloatArray
    decay: float
    popularity: FloatArray
    last: int | None = None

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) scores."""
        start = 0 if self.last is None else -self.last
        codes = [history.items[start:].astype(np.int64) for history in histories]
        rows = decayed_histories(codes, len(self.popularity), self.decay)
        product = rows @ self.matrix
        dense = product if isinstance(product, np.ndarray) else product.toarray()
        return torch.from_numpy(np.asarray(dense, dtype=np.float32) + self.popularity)


class MemoryAlone:
    """The memory of a model without its language model; popularity is the base rate."""

    name = "memory alone"

    def __init__(self, model: InfluenceModel, memory: Memory) -> None:
        self._model, self._memory = model, memory

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) log-probabilities."""
        batch = collate(self._model.encoder.encode(histories)).to(self._model.device)
        records = self._memory.aged(batch.records, batch.gap)
        with inference(self._model):
            return self._memory.alone(records, (records[..., ITEM] != NO_ITEM).float())


def item_systems(
    model: InfluenceModel, split: Split, config: EvaluationConfig
) -> list[tuple[str, Recommender]]:
    """The baselines of the item head by name, fitted and tuned without the test examples.

    Linear transitions and EASE are left out for catalogues above `DENSE_ITEMS`.
    """
    popular = _popularity(split.train)
    knn = best_item_knn(split.train, split.validation, config)
    systems: list[tuple[str, Recommender]] = [
        (f"{knn.name} ({knn.neighbours})", knn),
        (Popularity.name, Popularity(split.train)),
        ("revisits", revisits(split.train, popular)),
        ("first-order transitions", first_order(split.train, popular)),
    ]
    if len(split.log.catalogue) <= DENSE_ITEMS:
        for tried in (_linear(split.train, popular), _ease(split.train, popular)):
            best = _best(tried, split, config)
            systems.append((best.name, best))
    memory = model.item_head.memory
    if memory is not None:
        systems.append((MemoryAlone.name, MemoryAlone(model, memory)))
    return systems


def revisits(train: BehaviorLog, popular: FloatArray) -> Linear:
    """Items of the history, recent ones first, then popular items."""
    items = len(train.catalogue)
    return Linear("revisits", csr_array(np.eye(items, dtype=np.float32)), REVISIT_DECAY, popular)


def first_order(train: BehaviorLog, popular: FloatArray) -> Linear:
    """Shares of the items that followed the last item in training, then popular items."""
    items, follows = len(train.catalogue), train.positions()[1:] > 0
    pairs = (train.items[:-1][follows], train.items[1:][follows])
    counts = csr_array((np.ones(int(follows.sum()), np.float32), pairs), shape=(items, items))
    shares = counts.multiply(1 / np.maximum(counts.sum(axis=1), 1)[:, None])
    return Linear("first-order transitions", csr_array(shares), 1.0, popular, last=1)


def ease(train: BehaviorLog, ridge: float) -> FloatArray:
    """(I, I) weights of EASE (Steck 2019, arXiv:1905.03375), diagonal 0."""
    pairs = np.unique(np.stack([train.rows_of_users(), train.items]), axis=1)
    shape = (len(train), len(train.catalogue))
    bought = csr_array((np.ones(pairs.shape[1], np.float64), (pairs[0], pairs[1])), shape=shape)
    gram = (bought.T @ bought).toarray()
    gram[np.diag_indices_from(gram)] += ridge
    inverse = scipy.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def _popularity(train: BehaviorLog) -> FloatArray:
    counts = np.bincount(train.items, minlength=len(train.catalogue)).astype(np.float32)
    return PRIOR * counts / max(1.0, float(counts.max()))


def _linear(train: BehaviorLog, popular: FloatArray) -> list[Linear]:
    histories, items = item_codes(train), len(train.catalogue)
    return [
        Linear("linear transitions", matrix, decay, 0.0 * popular)
        for matrix in (linear_transitions(histories, items, setting) for setting in SETTINGS)
        for decay in READ_DECAYS
    ]


def _ease(train: BehaviorLog, popular: FloatArray) -> list[Linear]:
    return [Linear("EASE", ease(train, ridge), 1e6, 0.0 * popular) for ridge in RIDGES]


def _best(tried: Sequence[Linear], split: Split, config: EvaluationConfig) -> Linear:
    """The system with the best NDCG on validation."""
    metric = f"ndcg@{config.cutoff}"
    return max(tried, key=lambda system: evaluate(system, split.validation, config)[0][metric])
