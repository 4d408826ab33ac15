"""Deletion and insertion curves with their intervals, safe for colour-blind readers.

What is drawn is the change of the target against the whole history, user by user: users differ
far more in the target itself than methods do in what they make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from llm_influence.faithfulness.games import STEPS
from llm_influence.faithfulness.result import FaithfulnessResult
from llm_influence.influence.plots import MARKERS, OKABE_ITO, REFERENCE
from llm_influence.types import FloatArray
from llm_influence.utils import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPREAD = 5.0
"""Points of the horizontal axis over which methods stand side by side, so that bars do not hide
each other."""
PANELS = {
    "deletion": ("most influential events removed (%)", "Deletion: lower is better"),
    "insertion": ("most influential events kept (%)", "Insertion: higher is better"),
}


def plot_curves(
    result: FaithfulnessResult,
    methods: Sequence[str] | None = None,
    removal: str | None = None,
) -> Figure:
    """Two panels, one line a method with its 95% intervals; references are grey and dashed.

    Args:
        result: What was measured.
        methods: Which to draw; default: all.
        removal: Under which removal; default: the first.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", extra="plot", purpose="plot_curves")
    figure = figures.Figure(figsize=(13, 5.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (curve, (x_name, title)) in zip(axes, PANELS.items(), strict=True):
        _draw(axis, result, curve, methods or result.methods, removal)
        axis.axhline(0, color="#D1D5DB", linewidth=0.8, zorder=0)
        axis.set_xlabel(x_name)
        axis.set_ylabel("change of the target (log-odds)")
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
    for method, offset in zip(methods, _offsets(len(methods)), strict=True):
        whole = result.values(method, f"insertion@{STEPS[-1]}", removal)
        points = [
            result.interval_of(result.values(method, f"{curve}@{step}", removal) - whole)
            for step in STEPS
        ]
        mean, low, high = (
            np.array([getattr(point, end) for point in points]) for end in ("mean", "low", "high")
        )
        reference = method in result.references
        axis.errorbar(
            np.array(STEPS) + offset,
            mean,
            yerr=[mean - low, high - mean],
            color=REFERENCE if reference else next(colors),
            marker=next(markers),
            linestyle="--" if reference else "-",
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            label=method,
        )


def _offsets(count: int) -> FloatArray:
    return SPREAD * ((np.arange(count) + 0.5) / count - 0.5)
