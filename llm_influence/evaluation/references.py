"""What anybody can say of feedback and behaviours without a model: to be beaten."""

from __future__ import annotations

import numpy as np

from llm_influence.config import FeedbackHeadConfig
from llm_influence.data.feedback import feedback_labels
from llm_influence.data.splits import EvaluationSet, Split
from llm_influence.evaluation.behaviors import behavior_metrics
from llm_influence.evaluation.feedback import feedback_metrics, value_metrics
from llm_influence.types import FloatArray

SHRINKAGE = 5.0
"""Answers of the mean that every item is given beside its own."""


def feedback_references(split: Split, config: FeedbackHeadConfig) -> dict[str, dict[str, float]]:
    """Metrics on the test questions of the mean answer, of all of training and of each item.

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
    """Metrics on the test questions of the shares of training, and of the last behaviour again."""
    size = len(split.log.vocabulary.behaviors)
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
