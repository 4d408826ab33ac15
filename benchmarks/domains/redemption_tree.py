"""A gradient-boosted tree on hand features: the peer of the question of docs/tutorials/retail.md.

Every feature of a contact is made of the history before it and of the contact's campaign; it reads
the same log as we do, and all of the history where we read the last events.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from llm_influence.data.splits import EvaluationSet
from llm_influence.types import FloatArray, History

DAY = 86_400
WINDOWS = (14, 28, 84)
"""Days back from the contact over which visits and dollars are counted."""

Data = Mapping[str, tuple[FloatArray, FloatArray]]
Settings = dict[str, float]

GRID: list[Settings] = [
    dict(zip(("learning_rate", "max_leaf_nodes", "min_samples_leaf", "l2"), values, strict=True))
    for values in itertools.product((0.02, 0.1), (4, 8, 16), (10, 40), (0.0, 10.0))
]


@dataclass(frozen=True)
class Fitted:
    """One fitted tree ensemble and how it did on validation."""

    model: HistGradientBoostingClassifier
    trees: int
    summary: dict[str, float]

    def scores(self, columns: FloatArray) -> FloatArray:
        """(N,) log-odds with the number of trees that validation chose."""
        return _nth(self.model.staged_decision_function(columns), self.trees)


def fit(settings: Settings, seed: int, data: Data) -> Fitted:
    """Up to 200 trees; validation AUC chooses how many of them are used."""
    begun = time.process_time()
    (train, labels), (columns, targets) = data["train"], data["validation"]
    model = HistGradientBoostingClassifier(
        learning_rate=settings["learning_rate"],
        max_leaf_nodes=int(settings["max_leaf_nodes"]),
        min_samples_leaf=int(settings["min_samples_leaf"]),
        l2_regularization=settings["l2"],
        max_iter=200,
        max_features=0.5,  # so that seeds differ
        early_stopping=False,
        random_state=seed,
    ).fit(train, labels)
    known = ~np.isnan(targets)
    areas = [
        roc_auc_score(targets[known], stage[known])
        for stage in model.staged_decision_function(columns)
    ]
    best = int(np.argmax(areas))
    seconds = time.process_time() - begun
    summary = {"validation_auc": float(areas[best]), "train_seconds": seconds, "trees": best + 1}
    return Fitted(model, best, summary)


def features(rows: EvaluationSet) -> FloatArray:
    """(N, F) hand features of contacts, NaN where there is no value."""
    types, moments = rows.target_items, rows.log.timestamps[rows.events]
    columns = [
        _of_history(rows.history(n), int(types[n]), int(moments[n])) for n in range(len(rows))
    ]
    return np.array(columns)


def _of_history(history: History, campaign: int, now: int) -> list[float]:
    names = history.code_names.behaviors
    contact, purchase, redeem = (
        history.behaviors == names.index(name) for name in ("contact", "purchase", "redeem")
    )
    days = (now - history.timestamps) / DAY
    dollars = np.where(purchase, np.nan_to_num(history.values), 0)
    values = [
        campaign,
        contact.sum(),
        (contact & (history.items == campaign)).sum(),
        redeem.sum(),
        redeem.sum() / max(contact.sum(), 1),
        _days_since(days, contact),
        _days_since(days, purchase),
        _days_since(days, redeem),
        float(days.max()),
        float(dollars.sum() / max(purchase.sum(), 1)),
    ]
    for window in WINDOWS:
        inside = days <= window
        values += [(purchase & inside).sum(), dollars[inside].sum(), (redeem & inside).sum()]
    return [float(value) for value in values] + [
        _number(history.user[name]) for name in DEMOGRAPHIC
    ]


DEMOGRAPHIC = ("age", "income", "household_size", "kids_count")


def _days_since(days: FloatArray, which: np.ndarray) -> float:
    return float(days[which].min()) if which.any() else np.nan


def _number(text: str) -> float:
    """The first number of "35-49K", "65+", "3"; 0 for "Under 15K", NaN where unknown."""
    if text.startswith("Under"):
        return 0.0
    digits = "".join(itertools.takewhile(str.isdigit, text))
    return float(digits) if digits else np.nan


def _nth(stages: object, place: int) -> FloatArray:
    return next(itertools.islice(stages, place, None))
