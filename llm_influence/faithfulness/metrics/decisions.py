"""What removals do to the recommendation itself: its rank after the events are gone."""

from __future__ import annotations

import numpy as np

from llm_influence.faithfulness.game import Game, Scored, keep_first
from llm_influence.faithfulness.metrics.registry import metric
from llm_influence.types import FloatArray

CUTOFF = 10
"""K: places of the list in which the target still counts as recommended."""
DELETED = (1, 5)
"""k: events deleted."""
LXR = "Barkan et al. 2024 (LXR), doi:10.1145/3589334.3645560"


def _still_listed(game: Game, scored: Scored, count: int, *, most: bool) -> FloatArray:
    """(N,) 1 where the target stays in the top K without the ``count`` most / least influential.

    Histories of ``count`` events or fewer would be deleted whole and get nan.
    """
    orders = scored.orders if most else [order[::-1] for order in scored.orders]
    masks = [~keep_first(order, [count]) for order in orders]
    listed = (game.each(game.ranks, masks) <= CUTOFF).astype(np.float64)
    return np.where(np.array(game.sizes) > count, listed, np.nan)


def _register(count: int) -> None:
    lies = "A target that leaves the list with any removal does so for every method."

    @metric(
        f"pos@{CUTOFF},{count}",
        better="low",
        equation=f"share of targets in the top {CUTOFF} without the {count} most influential",
        paper=LXR,
        lies=lies,
    )
    def pos(game: Game, scored: Scored) -> FloatArray:
        return _still_listed(game, scored, count, most=True)

    @metric(
        f"neg@{CUTOFF},{count}",
        better="high",
        equation=f"share of targets in the top {CUTOFF} without the {count} least influential",
        paper=LXR,
        lies=lies,
    )
    def neg(game: Game, scored: Scored) -> FloatArray:
        return _still_listed(game, scored, count, most=False)


for _count in DELETED:
    _register(_count)


@metric(
    "counterfactual_share",
    better="high",
    equation="share of histories where some set of the k most influential events, k at most "
    "largest_set, flips the first recommendation when removed",
    paper="Tran et al. 2021, arXiv:2105.05008; verified by running the model",
    lies="Recommendations near a tie flip with anything.",
)
def counterfactual_share(game: Game, scored: Scored) -> FloatArray:
    """1 where removing the most influential events flips the recommendation, else 0."""
    sizes = flip_sizes(game, scored)
    return np.where(np.isnan(sizes), np.nan, sizes > 0)


@metric(
    "counterfactual_size",
    better="low",
    equation="events in the smallest such set, over the histories that flip",
    paper="Tran et al. 2021, arXiv:2105.05008; verified by running the model",
    lies="A mean over flipped histories alone: read it beside the share.",
)
def counterfactual_size(game: Game, scored: Scored) -> FloatArray:
    """Events of the smallest flipping set; nan where none flips."""
    sizes = flip_sizes(game, scored)
    return np.where(sizes > 0, sizes, np.nan)


def flip_sizes(game: Game, scored: Scored) -> FloatArray:
    """(N,) fewest of the most influential events whose removal flips the first place; 0: none.

    A set flips when the target, first with all events, is first no longer. A target that was not
    first (a named item) cannot be flipped and gives nan.
    """
    masks = [
        np.concatenate(
            [
                np.ones((1, len(order)), dtype=bool),
                ~keep_first(order, range(1, min(game.largest_set, len(order)) + 1)),
            ]
        )
        for order in scored.orders
    ]
    return np.array([_first_flip(ranks) for ranks in game.ranks(masks)])


def _first_flip(ranks: FloatArray) -> float:
    """Place of the first rank above 1 in the (k + 1,) ranks without 0, 1, ..., k events."""
    if ranks[0] > 1:
        return np.nan
    flipped = np.flatnonzero(ranks > 1)
    return float(flipped[0]) if len(flipped) else 0.0
