"""A sparse linear model of what any part of the history is worth."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV

from llm_influence.attribution.coalitions import random_coalitions
from llm_influence.attribution.draws import generator
from llm_influence.attribution.registry import register
from llm_influence.attribution.shapley import check_budget, check_passes
from llm_influence.attribution.task import Attribution, Task
from llm_influence.types import BoolArray, FloatArray

FOLDS = 5
NEGLIGIBLE = 1e-6
"""Weights below this share of the largest are none."""


@register(
    name="sparse_surrogate",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="`passes` (100) + 2; 2^E where that is less",
    estimates="weights of the sparse linear model that best predicts f when each event is kept or "
    "removed by the toss of a coin",
    equation="a minimises mean over random S of (f(S) - b - sum of a over S)^2 + penalty |a|",
    paper="ContextCite: Cohen-Wang et al. 2024, arXiv:2409.00729; LASSO: Tibshirani 1996",
    caution="Not a Shapley value: it speaks of histories cut in half, where everything left weighs "
    "more than in the whole one, and it does not add up to f(all) - f(none).",
)
def sparse_surrogate(task: Task, passes: int = 100) -> Attribution:
    """What each event is worth to a linear predictor of f under uniformly random removals.

    LASSO chooses the events (penalty by five-fold cross-validation), least squares on those gives
    the weights, so that they are not shrunk; with fewer distinct sets than events the LASSO's own
    weights stay. Events not chosen get exactly 0.

    Args:
        task: What to explain.
        passes: Random sets to ask, all different; all 2^E where there are no more.

    Raises:
        ExplanationError: Fewer than 10 passes, too few for a cross-validation.
    """
    check_budget(task, "sparse_surrogate", passes)
    masks = []
    for row, players in enumerate(task.sizes):
        check_passes(task, row, "sparse_surrogate", passes, min(2 * FOLDS, 1 << players))
        masks.append(random_coalitions(generator(task, row), players, passes))
    values = task.values(masks)
    base, full = task.values.ends()
    return Attribution(
        scores=[sparse_weights(m, v) for m, v in zip(masks, values, strict=True)],
        frame=np.zeros(len(masks)),
        base=base,
        full=full,
        passes=task.values.passes.copy(),
    )


def sparse_weights(masks: BoolArray, values: FloatArray) -> FloatArray:
    """(n,) weights of the sparse linear model of values (M,) of distinct coalitions (M, n)."""
    weights = np.zeros(masks.shape[1])
    if np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()):
        return weights
    features = masks - 0.5
    if len(masks) >= 2 * FOLDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of penalties that do not win
            weights = LassoCV(cv=FOLDS, max_iter=5000).fit(features, values).coef_.copy()
    else:
        weights[:] = 1.0  # too few sets to choose by: all of them, at most three events
    chosen = np.abs(weights) > NEGLIGIBLE * np.abs(weights).max()
    weights[~chosen] = 0.0
    if 0 < chosen.sum() < len(masks):
        line = np.column_stack([np.ones(len(masks)), features[:, chosen]])
        weights[chosen] = np.linalg.lstsq(line, values, rcond=None)[0][1:]
    weights[np.abs(weights) <= NEGLIGIBLE * np.abs(weights).max()] = 0.0
    return weights
