"""The figure of shares: for each channel, all estimators beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llm_influence.analysis.output import Records, new_figure
from llm_influence.influence.palette import MARKERS, OKABE_ITO, REFERENCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

*COLORS, BLACK = OKABE_ITO
WIDTH = 0.76
"""Of the lines of one channel, of the distance between channels."""


def draw_shares(shares: Records, channels: Sequence[str], estimators: Sequence[str]) -> Figure:
    """A row a channel; in it, a point with its interval an estimator."""
    figure = new_figure(8.4, 1.5 + 0.17 * len(channels) * (len(estimators) + 1))
    axis = figure.subplots()
    places = {name: place for place, name in enumerate(channels)}
    for number, name in enumerate(estimators):
        rows = [row for row in shares if row["estimator"] == name]
        middle, low, high = (
            np.array([row[column] for row in rows], dtype=np.float64)
            for column in ("share", "low", "high")
        )
        shift = WIDTH * ((number + 0.5) / len(estimators) - 0.5)
        axis.errorbar(
            middle,
            [places[row["channel"]] + shift for row in rows],
            xerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
            fmt=MARKERS[number % len(MARKERS)],
            color=BLACK if name == "model" else COLORS[number % len(COLORS)],
            markerfacecolor=None if name == "model" else "white",
            markersize=5,
            elinewidth=1.1,
            capsize=2,
            label=name.replace("_", " "),
        )
    axis.set_yticks(range(len(channels)), channels, fontsize=9, parse_math=False)
    axis.set_ylim(len(channels) - 0.5, -0.5)
    for edge in range(1, len(channels)):
        axis.axhline(edge - 0.5, color=REFERENCE, linewidth=0.5, alpha=0.5)
    axis.axvline(0, color=REFERENCE, linewidth=0.8, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("share of what is laid to all channels, 95% interval over users")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure
