"""Areas under the curves that removing or adding events by influence draws, in log-odds."""

from __future__ import annotations

import numpy as np

from llm_influence.faithfulness.game import STEPS, Game, Scored, count_of, keep_first
from llm_influence.faithfulness.metrics.erasure import deletion_values, insertion_values
from llm_influence.faithfulness.metrics.registry import metric
from llm_influence.types import FloatArray

RISE = "Petsiuk et al. 2018, arXiv:1806.07421"


@metric(
    "deletion_auc",
    better="low",
    equation="mean over k = 10, 20, ..., 100% of f(x without T_k)",
    paper=RISE,
    lies="Long removals leave histories that no user has; the curve's end is the same for all.",
)
def deletion_auc(game: Game, scored: Scored) -> FloatArray:
    """Log-odds left over while the most influential events go first."""
    return deletion_values(game, scored).mean(axis=1)


@metric(
    "insertion_auc",
    better="high",
    equation="mean over k = 10, 20, ..., 100% of f(x_{T_k})",
    paper=RISE,
    lies="As deletion; the first events alone are a very short history.",
)
def insertion_auc(game: Game, scored: Scored) -> FloatArray:
    """Log-odds won while the most influential events come first."""
    return insertion_values(game, scored).mean(axis=1)


@metric(
    "abpc",
    better="high",
    equation="mean over k = 10, ..., 100% of f(x without the k least influential) - "
    "f(x without T_k)",
    paper="Ancona et al. 2018, arXiv:1711.06104; the area between perturbation curves",
    lies="As deletion. Scores that are right about extremes alone still do well.",
)
def abpc(game: Game, scored: Scored) -> FloatArray:
    """Area between removing the least influential first and the most influential first."""
    masks = [
        keep_first(order, [len(order) - count_of(percent, len(order)) for percent in STEPS])
        for order in scored.orders
    ]
    least_first = np.stack(game.values(masks))
    return least_first.mean(axis=1) - deletion_auc(game, scored)
