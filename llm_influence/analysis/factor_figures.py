"""Figures of the factors. Position says everything; colour and marker only say it again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from llm_influence.analysis.output import Records, new_figure
from llm_influence.influence.palette import OKABE_ITO, REFERENCE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = OKABE_ITO[:2]
ACROSS = 3


def draw_ranking(ranking: Records) -> Figure:
    """Two panels of the same factors: spread of effects, and permutation importance."""
    figure = new_figure(10, 1.3 + 0.36 * len(ranking))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [str(row["factor"]) + ("" if row["matters"] else " (n.s.)") for row in ranking]
    draw_points(left, ranking, ("spread", "spread_low", "spread_high"), names, BLUE, "o")
    columns = ("permutation_share", "permutation_low", "permutation_high")
    draw_points(right, ranking, columns, names, ORANGE, "s")
    left.set_xlabel("spread of its effects (units of influence)")
    right.set_xlabel("permutation importance (share of variance)")
    return figure


def draw_effects(effects: Records) -> Figure:
    """A panel a factor: effects with intervals, and partial dependence of the trees."""
    groups = [list(rows) for _, rows in groupby(effects, key=lambda row: row["factor"])]
    down = -(-len(groups) // ACROSS)
    deepest = max(len(rows) for rows in groups)
    figure = new_figure(4.4 * min(ACROSS, len(groups)), down * (1.1 + 0.24 * deepest) + 0.5)
    axes = figure.subplots(down, min(ACROSS, len(groups)), squeeze=False).ravel()
    for axis, rows in zip(axes, groups, strict=False):
        names = [str(row["level"]) for row in rows]
        handle = draw_points(axis, rows, ("effect", "low", "high"), names, BLUE, "o")
        places = np.arange(len(rows))
        trees = [row["partial_dependence"] for row in rows]
        (mark,) = axis.plot(
            trees, places, color=ORANGE, marker="s", markersize=5, markerfacecolor="none", ls="none"
        )
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(str(rows[0]["factor"]), loc="left", fontsize=10, parse_math=False)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    figure.legend(
        [handle, mark],
        ["effect by regression, 95% interval over users", "partial dependence of trees"],
        loc="outside lower center",
        ncols=2,
        title="change of influence against the average event",
        fontsize=8,
        title_fontsize=9,
        frameon=False,
    )
    return figure


def draw_interactions(pairs: Records) -> Figure:
    """How much each pair adds to both effects."""
    figure = new_figure(7, 1.3 + 0.3 * len(pairs))
    axis = figure.subplots()
    names = [
        f"{row['first']} x {row['second']}" + ("" if row["matters"] else " (n.s.)") for row in pairs
    ]
    draw_points(axis, pairs, ("spread", "low", "high"), names, BLUE, "o")
    axis.set_xlabel("spread of what the pair adds (units of influence)")
    return figure


def draw_weights(weights: Records) -> Figure:
    """Weights of behaviours at equal age, the largest being 1."""
    figure = new_figure(6, 1.3 + 0.34 * len(weights))
    axis = figure.subplots()
    names = [str(row["behavior"]) for row in weights]
    draw_points(axis, weights, ("weight", "low", "high"), names, BLUE, "o")
    axis.set_xlabel("what one event counts at equal age, the largest being 1")
    return figure


def draw_points(
    axis: Axes,
    rows: Records,
    columns: tuple[str, str, str],
    names: Sequence[str],
    color: str,
    marker: str,
) -> Artist:
    """A point with its interval a row, the first at the top; gives what a legend shows."""
    middle, low, high = (
        np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
        for name in columns
    )
    below, above = np.maximum(middle - low, 0), np.maximum(high - middle, 0)
    places = np.arange(len(rows))
    handle = axis.errorbar(
        middle,
        places,
        xerr=[below, above],
        fmt=marker,
        color=color,
        markersize=4.5,
        elinewidth=1.1,
        capsize=2,
    )
    axis.set_yticks(places, names, fontsize=8, parse_math=False)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.axvline(0, color=REFERENCE, linewidth=0.8, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    dot: Artist = handle.lines[0]
    return dot
