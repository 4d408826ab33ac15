"""What recommendations show people: how much of the catalogue, and how popular it is.

How good predictions of the next behaviour are.

How good predicted feedback is: order within everyone and within each user, and calibration.

Where the true next item stands among all items of the catalogue.

Full ranking: every item is a candidate but those the history already holds (if the protocol says
so); equal scores are ordered by catalogue row. `InfluenceModel.recommend` follows the same rules,
so a rank of 1 here is the first recommendation there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.metrics import f1_score
from torch import Tensor

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores
from llm_influence.types import FloatArray, History, IntArray


def exposure_metrics(
    top: IntArray, targets: IntArray, counts: IntArray, cutoff: int
) -> dict[str, float]:
    """Coverage and popularity of the first K recommendations.

    Args:
        top: (N, K) recommended item codes, -1 where a row has fewer.
        targets: (N,) item codes that really came.
        counts: (I,) events of training by item.
        cutoff: K, for the names.

    Returns:
        ``coverage@K``: share of the catalogue that stands in any row. ``popularity@K``: mean
        popularity of what is recommended; ``target_popularity``: the same of what came. An item's
        popularity is its percentile by training events, items with equally many sharing the mean.
    """
    percentile = (rankdata(counts) - 0.5) / len(counts)
    shown = top[top >= 0]
    return {
        f"coverage@{cutoff}": float(len(np.unique(shown)) / len(counts)),
        f"popularity@{cutoff}": float(percentile[shown].mean()),
        "target_popularity": float(percentile[targets].mean()),
    }


def behavior_metrics(
    targets: IntArray, predicted: IntArray, log_probabilities: FloatArray
) -> dict[str, float]:
    """Accuracy, macro F1 and log loss.

    Args:
        targets: (N,) behaviour codes that came.
        predicted: (N,) the most likely ones.
        log_probabilities: (N,) of the targets, in nats.

    Returns:
        ``macro_f1`` is the plain mean of the F1 scores of all behaviours that came or were
        predicted.
    """
    return {
        "accuracy": float(np.mean(np.asarray(predicted) == targets)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "log_loss": float(-np.mean(log_probabilities)),
    }


BINS = 15
"""Bins of the calibration error, each with as many rows as the others where scores differ."""


def feedback_metrics(
    labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike
) -> dict[str, float]:
    """AUC, GAUC, log loss, calibration error and Brier score of binary feedback.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) log-odds of a 1, ``log p - log(1 - p)``; they may be infinite.
        users: (N,) whose row it is, any values that can be told apart.

    Returns:
        ``auc``: chance that a 1 stands before a 0, a tie counting half. ``gauc``: the same within
        each user, averaged by rows over the users with both labels (Zhou et al. 2018,
        arXiv:1706.06978). ``log_loss`` in nats. ``ece``: expected calibration error over `BINS`
        bins of equal mass (Naeini et al. 2015; Nguyen & O'Connor 2015); equal scores are never
        parted. ``brier``: mean squared error of the probability. What is not defined is nan: AUC
        of one sort of labels, GAUC where no user has both.
    """
    ones, logits = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    groups = np.unique(np.asarray(users), return_inverse=True)[1]
    chances = expit(logits)
    losses = np.where(ones > 0, np.logaddexp(0, -logits), np.logaddexp(0, logits))
    each, rows = auc_by_group(ones, logits, groups)
    both = ~np.isnan(each)
    return {
        "auc": float(auc_by_group(ones, logits, np.zeros(len(ones), np.int64))[0][0]),
        "gauc": float(np.average(each[both], weights=rows[both])) if both.any() else float("nan"),
        "log_loss": float(losses.mean()),
        "ece": calibration_error(ones, chances),
        "brier": float(np.mean((chances - ones) ** 2)),
    }


def value_metrics(labels: npt.ArrayLike, values: npt.ArrayLike) -> dict[str, float]:
    """Root mean squared and mean absolute error of (N,) expected labels."""
    errors = np.asarray(values, np.float64) - np.asarray(labels, np.float64)
    return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.abs(errors).mean())}


def auc_by_group(
    ones: FloatArray, scores: FloatArray, groups: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Area under the ROC curve of each group, by the rank sum of its ones.

    Args:
        ones: (N,) 0 or 1.
        scores: (N,) higher for what is more likely a 1.
        groups: (N,) numbers from 0 to G - 1, each there.

    Returns:
        (G,) areas, nan where a group has one sort of label, and (G,) rows of the groups.
    """
    order = np.lexsort((scores, groups))
    group, score, one = groups[order], scores[order], ones[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    first = np.flatnonzero(new)  # of each run of equal scores
    last = np.append(first[1:], len(order)) - 1
    middle = ((first + last) / 2)[np.cumsum(new) - 1]  # equal scores share their mean place
    rows = np.bincount(group).astype(np.float64)
    starts = np.cumsum(rows) - rows
    ranks = middle - starts[group] + 1
    positive = np.bincount(group, weights=one)
    pairs = positive * (rows - positive)
    above = np.bincount(group, weights=ranks * one) - positive * (positive + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan), rows


def calibration_error(ones: FloatArray, chances: FloatArray, bins: int = BINS) -> float:
    """Mean distance of a bin's mean (N,) chance from its share of (N,) ones, by rows."""
    edges = np.quantile(chances, np.arange(1, bins) / bins, method="lower")
    bin_of = np.searchsorted(np.unique(edges), chances, side="left")
    apart = np.bincount(bin_of, weights=chances - ones)
    return float(np.abs(apart).sum() / len(ones))


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
