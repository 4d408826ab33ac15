"""Deletion and insertion curves with their intervals, safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from llm_influence.extras import require
from llm_influence.faithfulness.game import STEPS
from llm_influence.faithfulness.result import FaithfulnessResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours that remain apart for colour-blind readers; markers tell lines apart without them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
PANELS = {
    "deletion": ("most influential events removed (%)", "Deletion: lower is better"),
    "insertion": ("most influential events kept (%)", "Insertion: higher is better"),
}


def plot_curves(
    result: FaithfulnessResult,
    methods: Sequence[str] | None = None,
    removal: str | None = None,
) -> Figure:
    """Two panels, one line a method with its 95% interval; references are grey and dashed.

    Args:
        result: What was measured.
        methods: Which to draw; default: all.
        removal: Under which removal; default: the first.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", extra="plot", purpose="plot_curves")
    figure = figures.Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (curve, (x_name, title)) in zip(axes, PANELS.items(), strict=True):
        _draw(axis, result, curve, methods or result.methods, removal)
        axis.set_xlabel(x_name)
        axis.set_ylabel("target (log-odds)")
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(STEPS)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return figure


def _draw(
    axis: Axes,
    result: FaithfulnessResult,
    curve: str,
    methods: Sequence[str],
    removal: str | None,
) -> None:
    colors, markers = cycle(OKABE_ITO), cycle(MARKERS)
    for method in methods:
        points = [result.interval(method, f"{curve}@{step}", removal) for step in STEPS]
        reference = method in result.references
        color = "#8A8F98" if reference else next(colors)
        mean = np.array([point.mean for point in points])
        axis.plot(
            STEPS,
            mean,
            color=color,
            marker=next(markers),
            linestyle="--" if reference else "-",
            markersize=4,
            linewidth=1.4,
            label=method,
        )
        low, high = ([getattr(point, end) for point in points] for end in ("low", "high"))
        axis.fill_between(STEPS, low, high, color=color, alpha=0.12, linewidth=0)
