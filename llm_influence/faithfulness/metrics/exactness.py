"""Against exact Shapley values where those can be had, and against the whole change always."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from llm_influence.faithfulness.correlation import spearman
from llm_influence.faithfulness.game import Game, Scored
from llm_influence.faithfulness.metrics.registry import metric
from llm_influence.types import BoolArray, FloatArray

TOP = 3
"""Events compared as the most influential ones."""
SHAPLEY = "Shapley 1953"
SLOW = "Needs 2^E passes a history of E events, so only short histories are measured."


@metric(
    "completeness_gap",
    better="low",
    equation="|sum of a - (f(x) - f(baseline))| / |f(x) - f(baseline)|, the method's own baseline",
    paper="Sundararajan et al. 2017, arXiv:1703.01365",
    lies="Scores that are made to add up have none, right or wrong. Large where f hardly moved. "
    "Shares have no units and get none.",
)
def completeness_gap(game: Game, scored: Scored) -> FloatArray:
    """What the scores lack to the whole change of the target; nan for shares."""
    moved = game.full - scored.base
    total = np.array([row.sum() for row in scored.scores]) + scored.frame
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.where(moved == 0, np.nan, np.abs(total - moved) / np.abs(moved))
    return gaps if scored.in_target_units else np.full(len(gaps), np.nan)


@metric(
    "exact_rmse",
    better="low",
    equation="root of the mean over events of (a - exact Shapley value)^2",
    paper=SHAPLEY,
    lies=f"{SLOW} A method that estimates something else is not wrong for being far.",
    default=False,
)
def exact_rmse(game: Game, scored: Scored) -> FloatArray:
    """Distance to exact Shapley values, log-odds; nan for shares and long histories."""
    if not scored.in_target_units:
        return np.full(len(scored.scores), np.nan)
    return _against(game, scored, lambda exact, row: float(np.sqrt(np.mean((row - exact) ** 2))))


@metric(
    "exact_spearman",
    better="high",
    equation="Spearman over events of a and the exact Shapley values",
    paper=SHAPLEY,
    lies=SLOW,
    default=False,
)
def exact_spearman(game: Game, scored: Scored) -> FloatArray:
    """Rank correlation with exact Shapley values."""
    return _against(game, scored, spearman)


@metric(
    f"exact_top{TOP}",
    better="high",
    equation=f"share of the {TOP} events of largest exact Shapley value among the {TOP} of "
    "largest a",
    paper=SHAPLEY,
    lies=f"{SLOW} Chance alone gives {TOP} / E.",
    default=False,
)
def exact_top(game: Game, scored: Scored) -> FloatArray:
    """Overlap of the most supporting events with those of exact Shapley values."""
    theirs = game.orders([np.nan_to_num(row) for row in exact_shapley(game)])
    overlaps = [
        len(set(ours[:TOP]) & set(exact[:TOP])) / min(TOP, len(ours))
        for ours, exact in zip(scored.orders, theirs, strict=True)
    ]
    short = np.array(game.sizes) <= game.exact_events
    return np.where(short, overlaps, np.nan)


def exact_shapley(game: Game) -> list[FloatArray]:
    """N arrays (E,) of exact Shapley values, all nan for histories above ``exact_events``.

    ``phi_i = sum over S without i of |S|! (E - |S| - 1)! / E! (f(S and i) - f(S))``.
    """
    short = [size <= game.exact_events for size in game.sizes]
    masks = [
        _all_sets(size) if small else np.zeros((0, size), dtype=bool)
        for size, small in zip(game.sizes, short, strict=True)
    ]
    return [
        _shapley(value, size) if small else np.full(size, np.nan)
        for value, size, small in zip(game.values(masks), game.sizes, short, strict=True)
    ]


def _all_sets(size: int) -> BoolArray:
    """(2^E, E): row c holds event i where bit i of c is set."""
    return (np.arange(2**size)[:, None] >> np.arange(size)) % 2 == 1


def _shapley(values: FloatArray, size: int) -> FloatArray:
    codes, held = np.arange(2**size), _all_sets(size).sum(axis=1)
    weights = np.array([1 / (size * comb(size - 1, k)) for k in range(size)])
    found = np.empty(size)
    for event in range(size):
        without = codes[(codes >> event) % 2 == 0]
        gains = values[without | (1 << event)] - values[without]
        found[event] = weights[held[without]] @ gains
    return found


def _against(
    game: Game, scored: Scored, compare: Callable[[FloatArray, FloatArray], float]
) -> FloatArray:
    pairs = zip(exact_shapley(game), scored.scores, strict=True)
    return np.array([np.nan if np.isnan(e).any() else compare(e, row) for e, row in pairs])
