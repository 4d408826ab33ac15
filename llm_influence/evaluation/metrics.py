"""Metrics of predictions: ranking, behaviours, feedback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)
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
        targets: (N,) item codes of the true next items.
        counts: (I,) training events by item.
        cutoff: K, for the names.

    Returns:
        ``coverage@K``: share of the catalogue that is recommended in any row. ``popularity@K``:
        mean popularity of the recommended items; ``target_popularity``: that of the targets. The
        popularity of an item is its percentile by training events; ties share the mean percentile.
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
    """Accuracy, macro F1 and log loss of the next behaviour.

    Args:
        targets: (N,) behaviour codes.
        predicted: (N,) most probable behaviour codes.
        log_probabilities: (N,) of the targets, in nats.

    Returns:
        ``accuracy``, ``log_loss``, and ``macro_f1``, the mean F1 score of all behaviours among the
        targets or the predictions.
    """
    return {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "log_loss": float(-np.mean(log_probabilities)),
    }


BINS = 15
"""Bins of the calibration error, of equally many rows where scores differ."""


def feedback_metrics(
    labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike
) -> dict[str, float]:
    """AUC, GAUC, log loss, calibration error and Brier score of binary feedback.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) log-odds of a 1, ``log p - log(1 - p)``; they may be infinite.
        users: (N,) the row's user, as any comparable value.

    Returns:
        ``auc``: area under the ROC curve; nan if all labels are equal. ``gauc``: AUC within each
        user, averaged over the users with both labels, weighted by rows (Zhou et al. 2018,
        arXiv:1706.06978); nan without such a user. ``log_loss``: in nats; not clipped, so a
        certain and wrong score gives infinity. ``ece``: expected calibration error over `BINS`
        bins of equal mass (Naeini et al. 2015; Nguyen & O'Connor 2015); equal scores share a bin.
        ``brier``: mean squared error of the probability.
    """
    ones, logits = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    groups = np.unique(np.asarray(users), return_inverse=True)[1]
    probabilities = expit(logits)
    areas, rows = auc_by_group(ones, logits, groups)
    mixed = ~np.isnan(areas)
    one_label = ones.min() == ones.max()
    return {  # ranks: scikit-learn refuses infinite scores
        "auc": float("nan") if one_label else float(roc_auc_score(ones, rankdata(logits))),
        "gauc": float(np.average(areas[mixed], weights=rows[mixed])) if mixed.any() else np.nan,
        "log_loss": float(np.logaddexp(0, np.where(ones > 0, -logits, logits)).mean()),
        "ece": calibration_error(ones, probabilities),
        "brier": float(brier_score_loss(ones, probabilities)),
    }


def value_metrics(labels: npt.ArrayLike, values: npt.ArrayLike) -> dict[str, float]:
    """Root mean squared error and mean absolute error of (N,) expected labels."""
    return {
        "rmse": float(root_mean_squared_error(labels, values)),
        "mae": float(mean_absolute_error(labels, values)),
    }


def auc_by_group(
    ones: FloatArray, scores: FloatArray, groups: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Area under the ROC curve of each group, by the rank sum of its ones.

    Args:
        ones: (N,) 0 or 1.
        scores: (N,) higher for a more probable 1.
        groups: (N,) numbers from 0 to G - 1; no group is empty.

    Returns:
        (G,) areas, nan where a group has one label only, and (G,) rows of the groups.
    """
    codes = np.unique(scores, return_inverse=True)[1]
    sizes = np.bincount(groups).astype(np.float64)
    ranks = rankdata(groups * (codes.max() + 1) + codes) - (np.cumsum(sizes) - sizes)[groups]
    positive = np.bincount(groups, weights=ones)
    pairs = positive * (sizes - positive)
    above = np.bincount(groups, weights=ranks * ones) - positive * (positive + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan), sizes


def calibration_error(ones: FloatArray, probabilities: FloatArray, bins: int = BINS) -> float:
    """Mean difference between a bin's mean probability and its share of ones, weighted by rows.

    Args:
        ones: (N,) 0 or 1.
        probabilities: (N,) of a 1.
        bins: Number of bins.
    """
    edges = np.quantile(probabilities, np.arange(1, bins) / bins, method="lower")
    bin_of = np.searchsorted(np.unique(edges), probabilities, side="left")
    differences = np.bincount(bin_of, weights=probabilities - ones)
    return float(np.abs(differences).sum() / len(ones))


MISSED = np.iinfo(np.int64).max
"""Rank of a target that was no candidate: a seen item or one that a rule excludes."""


class Recommender(Protocol):
    """Anything that scores all items of the catalogue for histories."""

    name: str

    def scores(self, histories: Sequence[History]) -> Tensor | ItemScores:
        """(B, I) scores, higher is better; as `ItemScores` to compute them in chunks."""


class ModelRecommender:
    """An `InfluenceModel` as a `Recommender`."""

    name = "llm_influence"

    def __init__(self, model: InfluenceModel) -> None:
        self._model = model

    def scores(self, histories: Sequence[History]) -> ItemScores:
        """(B, I) item logits under the model's rules, in chunks of items."""
        return self._model.score(histories)


def target_ranks(
    scores: Tensor | ItemScores, targets: Tensor, seen: Tensor | None = None
) -> Tensor:
    """(B,) rank of each target; 1 is best, equal scores are ordered by row of the catalogue.

    Args:
        scores: (B, I).
        targets: (B,) item codes.
        seen: (B, S) codes of items that are no candidates (`seen_items`), -1 for none. A target
            among them has rank `MISSED`.
    """
    if isinstance(scores, Tensor):
        scores = ItemScores.of(scores)
    ranks = scores.ranks(targets, seen).masked_fill(scores.excluded(targets), MISSED)
    if seen is None:
        return ranks
    return ranks.masked_fill((seen == targets[:, None]).any(dim=1).cpu(), MISSED)


def seen_items(codes: Sequence[IntArray]) -> Tensor:
    """(B, S) item codes of each history, -1 where a row has fewer."""
    seen = torch.full((len(codes), max(map(len, codes), default=0)), -1, dtype=torch.int64)
    for row, items in zip(seen, codes, strict=True):
        row[: len(items)] = torch.from_numpy(items.astype(np.int64))
    return seen


def ndcg_of_rows(ranks: IntArray, cutoff: int = 10) -> FloatArray:
    """(N,) NDCG@K of (N,) ranks, one relevant item each: 1 / log2(1 + rank) up to K, else 0."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return (ranks <= cutoff) / np.log2(1 + ranks)


def ranking_metrics(ranks: IntArray, cutoff: int = 10) -> dict[str, float]:
    """HR@K, NDCG@K and MRR of (N,) ranks.

    Each row has one relevant item, so HR@K is also recall@K.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    hit = float((ranks <= cutoff).mean())
    return {
        f"hr@{cutoff}": hit,
        f"ndcg@{cutoff}": float(ndcg_of_rows(ranks, cutoff).mean()),
        "mrr": float(np.where(ranks < MISSED, 1 / ranks, 0).mean()),
    }


def evaluate(
    recommender: Recommender,
    rows: EvaluationSet,
    config: EvaluationConfig,
    counts: IntArray | None = None,
) -> tuple[dict[str, float], IntArray]:
    """Rank the target of every row and measure the ranks.

    Args:
        recommender: Scores the items.
        rows: The evaluation set, N rows.
        config: The protocol: seen items, cutoff, batch size.
        counts: (I,) training events by item, for coverage and popularity; default: without these.

    Returns:
        The metrics by name, and (N,) ranks.
    """
    top = 0 if counts is None else config.cutoff
    batches = list(_ranks(recommender, rows, config, top))
    ranks, best = (np.concatenate(column) for column in zip(*batches, strict=True))
    metrics = ranking_metrics(ranks, config.cutoff)
    if counts is not None:
        metrics |= exposure_metrics(best, rows.target_items, counts, config.cutoff)
    return metrics, ranks


def _ranks(
    recommender: Recommender, rows: EvaluationSet, config: EvaluationConfig, top: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """(B,) ranks and (B, ``top``) recommendations, -1 for none, of each batch."""
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
    """The rules of an evaluation in plain words, written beside its numbers."""
    return {
        "rows": len(rows),
        "candidates": f"all {len(rows.log.catalogue)} items of the catalogue",
        "seen_items": "left out" if config.exclude_seen else "candidates as well",
        "equal_scores": "ordered by row of the catalogue",
        "cutoff": config.cutoff,
    }
