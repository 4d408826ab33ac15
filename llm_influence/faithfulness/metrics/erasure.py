"""How much of the probability goes with the most influential events, and how much stays."""

from __future__ import annotations

import numpy as np

from llm_influence.faithfulness.game import STEPS, Game, Scored, count_of, keep_first
from llm_influence.faithfulness.metrics.registry import metric
from llm_influence.types import FloatArray

SHARE = 20
"""Percentage of events called the most influential where one size is asked for."""
ERASER = "DeYoung et al. 2020, arXiv:1911.03429"


@metric(
    f"comprehensiveness@{SHARE}",
    better="high",
    equation=f"p(x) - p(x without T_k), k = {SHARE}% of the events",
    paper=ERASER,
    lies="Where the probability is small with all events, nothing can be lost.",
)
def comprehensiveness(game: Game, scored: Scored) -> FloatArray:
    """What the probability loses without the most influential events."""
    return _whole(game) - _without(game, scored, (SHARE,))[:, 0]


@metric(
    f"sufficiency@{SHARE}",
    better="low",
    equation=f"p(x) - p(x_{{T_k}}), k = {SHARE}% of the events",
    paper=ERASER,
    lies="A set can be worth more than the whole history: opposing events are gone as well.",
)
def sufficiency(game: Game, scored: Scored) -> FloatArray:
    """What the probability loses when only the most influential events are kept."""
    return _whole(game) - _alone(game, scored, (SHARE,))[:, 0]


@metric(
    "comprehensiveness_aopc",
    better="high",
    equation="mean over k = 10, 20, ..., 100% of p(x) - p(x without T_k)",
    paper=f"{ERASER}; AOPC: Samek et al. 2017, arXiv:1509.06321",
    lies="Users of confident predictions weigh more than all others.",
)
def comprehensiveness_aopc(game: Game, scored: Scored) -> FloatArray:
    """Comprehensiveness averaged over sizes, so that no size is chosen."""
    return _whole(game) - _without(game, scored, STEPS).mean(axis=1)


@metric(
    "sufficiency_aopc",
    better="low",
    equation="mean over k = 10, 20, ..., 100% of p(x) - p(x_{T_k})",
    paper=f"{ERASER}; AOPC: Samek et al. 2017, arXiv:1509.06321",
    lies="As sufficiency; short histories are not like those the model was trained on.",
)
def sufficiency_aopc(game: Game, scored: Scored) -> FloatArray:
    """Sufficiency averaged over sizes."""
    return _whole(game) - _alone(game, scored, STEPS).mean(axis=1)


def deletion_values(game: Game, scored: Scored, percents: tuple[int, ...] = STEPS) -> FloatArray:
    """(N, K) log-odds without the most influential ``percents`` of the events."""
    masks = [
        ~keep_first(order, [count_of(percent, len(order)) for percent in percents])
        for order in scored.orders
    ]
    return np.stack(game.values(masks))


def insertion_values(game: Game, scored: Scored, percents: tuple[int, ...] = STEPS) -> FloatArray:
    """(N, K) log-odds with the most influential ``percents`` of the events alone."""
    masks = [
        keep_first(order, [count_of(percent, len(order)) for percent in percents])
        for order in scored.orders
    ]
    return np.stack(game.values(masks))


def _whole(game: Game) -> FloatArray:
    return game.probabilities(game.full)


def _without(game: Game, scored: Scored, percents: tuple[int, ...]) -> FloatArray:
    return game.probabilities(deletion_values(game, scored, percents))


def _alone(game: Game, scored: Scored, percents: tuple[int, ...]) -> FloatArray:
    return game.probabilities(insertion_values(game, scored, percents))
