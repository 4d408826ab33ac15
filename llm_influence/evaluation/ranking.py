"""Where the true next item stands among all items of the catalogue.

Full ranking: every item is a candidate but those the history already holds (if the protocol says
so); equal scores are ordered by catalogue row. `InfluenceModel.recommend` follows the same rules,
so a rank of 1 here is the first recommendation there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llm_influence.config import EvaluationConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.exposure import exposure_metrics
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores
from llm_influence.types import FloatArray, History, IntArray

MISSED = np.iinfo(np.int64).max
"""Rank of a target that was no candidate: an item of the history, where those are left out, or one
that a rule excludes."""


class Recommender(Protocol):
    """Anything that scores every item of the catalogue for histories of the log's own codes."""

    name: str

    def scores(self, histories: Sequence[History]) -> Tensor | ItemScores:
        """(B, I) scores, higher is better; as `ItemScores` where they should not stand whole."""


class ModelRecommender:
    """An `InfluenceModel` as a `Recommender`."""

    name = "llm_influence"

    def __init__(self, model: InfluenceModel) -> None:
        self._model = model

    def scores(self, histories: Sequence[History]) -> ItemScores:
        """(B, I) item logits, a chunk of items at a time, under the model's rules."""
        return self._model.score(histories)


def target_ranks(
    scores: Tensor | ItemScores, targets: Tensor, seen: Tensor | None = None
) -> Tensor:
    """(B,) rank of each target, 1 is best; equal scores are ordered by row of the catalogue.

    Args:
        scores: (B, I).
        targets: (B,) item codes.
        seen: (B, S) codes of items that are no candidates (`seen_items`). A target among them is
            `MISSED`.
    """
    if isinstance(scores, Tensor):
        scores = ItemScores.of(scores)
    ranks = scores.ranks(targets, seen).masked_fill(scores.excluded(targets), MISSED)
    if seen is None:
        return ranks
    return ranks.masked_fill((seen == targets[:, None]).any(dim=1).cpu(), MISSED)


def seen_items(codes: Sequence[IntArray]) -> Tensor:
    """(B, S) the items of each history, -1 where a row has fewer."""
    seen = torch.full((len(codes), max(map(len, codes), default=0)), -1, dtype=torch.int64)
    for row, items in zip(seen, codes, strict=True):
        row[: len(items)] = torch.from_numpy(items.astype(np.int64))
    return seen


def ndcg_of_rows(ranks: IntArray, cutoff: int = 10) -> FloatArray:
    """(N,) NDCG@K of (N,) ranks, one relevant item each: 1 / log2(1 + rank) up to K, else 0."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return (ranks <= cutoff) / np.log2(1 + ranks)


def ranking_metrics(ranks: IntArray, cutoff: int = 10) -> dict[str, float]:
    """HR@K, recall@K, NDCG@K and MRR of (N,) ranks.

    One item is relevant in each row, so that recall@K is HR@K; both names are in use.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    hit = float((ranks <= cutoff).mean())
    return {
        f"hr@{cutoff}": hit,
        f"recall@{cutoff}": hit,
        f"ndcg@{cutoff}": float(ndcg_of_rows(ranks, cutoff).mean()),
        "mrr": float(np.where(ranks < MISSED, 1 / ranks, 0).mean()),
    }


def evaluate(
    recommender: Recommender,
    rows: EvaluationSet,
    config: EvaluationConfig,
    counts: IntArray | None = None,
) -> tuple[dict[str, float], IntArray]:
    """Metrics of a recommender and the (N,) rank of every row's target.

    With the (I,) ``counts`` of the items' training events also coverage and popularity
    (`evaluation.exposure`).
    """
    top = 0 if counts is None else config.cutoff
    found = list(_ranks(recommender, rows, config, top))
    ranks, best = (np.concatenate(column) for column in zip(*found, strict=True))
    metrics = ranking_metrics(ranks, config.cutoff)
    if counts is not None:
        metrics |= exposure_metrics(best, rows.target_items, counts, config.cutoff)
    return metrics, ranks


def _ranks(
    recommender: Recommender, rows: EvaluationSet, config: EvaluationConfig, top: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Ranks of a batch's targets, and its (B, ``top``) recommendations, -1 for none."""
    for start in range(0, len(rows), config.batch_size):
        part = range(start, min(start + config.batch_size, len(rows)))
        histories = [rows.history(row) for row in part]
        scores = recommender.scores(histories)
        targets = torch.from_numpy(rows.target_items[part.start : part.stop].astype(np.int64))
        seen = None
        if config.exclude_seen:
            seen = seen_items([history.items for history in histories])
        if isinstance(scores, Tensor):
            scores = ItemScores.of(scores)
        best = scores.best(top, seen=seen) if top else None
        codes = torch.empty(len(part), 0) if best is None else best.shown()
        yield target_ranks(scores, targets, seen).numpy(), codes.cpu().numpy()


def protocol(rows: EvaluationSet, config: EvaluationConfig) -> dict[str, object]:
    """The rules of a measurement in plain words, to stand beside its numbers."""
    return {
        "rows": len(rows),
        "candidates": f"all {len(rows.log.catalogue)} items of the catalogue",
        "seen_items": "left out" if config.exclude_seen else "candidates as well",
        "equal_scores": "ordered by row of the catalogue",
        "cutoff": config.cutoff,
    }
