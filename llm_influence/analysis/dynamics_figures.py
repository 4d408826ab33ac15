"""Figures of the dynamics. Lines differ by marker as well as by colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_influence.analysis.factor_figures import BLUE, draw_points
from llm_influence.analysis.output import Records, new_figure
from llm_influence.influence.palette import MARKERS, OKABE_ITO, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 6
"""Lines of a panel; a factor with more levels shows those of most events."""
MOST_ITEMS = 12
TICKS = ((1 / 60, "1 min"), (1, "1 h"), (24, "1 d"), (24 * 30, "30 d"), (24 * 365, "1 y"))


def draw_decay(curves: Records, lives: Records) -> Figure:
    """A panel a factor: mean influence by age with intervals, and the fitted form."""
    panels = _panels(curves)
    figure = new_figure(5.2 * min(2, len(panels)), 3.6 * -(-len(panels) // 2))
    axes = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False).ravel()
    told = {(row["factor"], row["level"]): row for row in lives}
    for axis, (factor, rows) in zip(axes, panels, strict=False):
        for number, (level, own) in enumerate(_lines(rows)):
            color, marker = OKABE_ITO[number], MARKERS[number]
            ages = np.array([row["age_hours"] for row in own]) + 1 / 60
            label = _label(level, told[factor, level])
            _interval(axis, ages, own, color, marker, label, line=False)
            if own[0]["fitted"] is not None:
                axis.plot(ages, [row["fitted"] for row in own], color=color, linewidth=1.2)
        axis.set_xscale("log")
        axis.minorticks_off()
        lowest, highest = axis.get_xlim()
        shown = [tick for tick in TICKS if lowest <= tick[0] <= highest]
        axis.set_xticks([at for at, _ in shown], [name for _, name in shown])
        axis.set_xlabel("1 minute + age of the event at the prediction")
        _finish(axis, factor, "mean influence")
    _hide(axes[len(panels) :])
    return figure


def draw_drift(rows: Records, changes: Records) -> Figure:
    """A panel a factor: mean influence by window, and changes as vertical lines."""
    panels = _panels(rows)
    figure = new_figure(5.2 * min(2, len(panels)), 3.6 * -(-len(panels) // 2))
    axes = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False).ravel()
    for axis, (factor, records) in zip(axes, panels, strict=False):
        for number, (level, own) in enumerate(_lines(records)):
            color, marker = OKABE_ITO[number], MARKERS[number]
            days = np.array([date.fromisoformat(row["window"]).toordinal() for row in own])
            _interval(axis, days, own, color, marker, level or "all events", line=True)
            for change in changes:
                if (change["factor"], change["level"]) == (factor, level):
                    at = date.fromisoformat(change["window"]).toordinal()
                    axis.axvline(at, color=color, linestyle="--", linewidth=1)
        ticks = [int(at) for at in axis.get_xticks() if at >= 1][::2]
        axis.set_xticks(ticks, [date.fromordinal(at).isoformat() for at in ticks])
        axis.set_xlabel("first day of the window; dashed: a change")
        _finish(axis, factor, "mean influence at usual ages")
    _hide(axes[len(panels) :])
    return figure


def draw_moved(rows: Records) -> Figure:
    """Changes with intervals: every level, and the items that moved most surely."""
    items = [row for row in rows if row["factor"] == "item"][:MOST_ITEMS]
    shown = [row for row in rows if row["factor"] != "item"] + items
    figure = new_figure(7.5, 1.3 + 0.24 * len(shown))
    axis = figure.subplots()
    names = [
        " ".join(part for part in (row["factor"], row["title"] or row["level"]) if part)
        + (" (unpaired)" if row["how"] == "unpaired" else "")
        + ("" if row["moved"] else " (n.s.)")
        for row in shown
    ]
    draw_points(axis, shown, ("change", "low", "high"), names, BLUE, "o")
    axis.set_xlabel("change of mean influence, after minus before")
    return figure


def _panels(rows: Records) -> list[tuple[str, Records]]:
    return [(str(name), list(own)) for name, own in groupby(rows, key=lambda row: row["factor"])]


def _lines(rows: Records) -> Iterable[tuple[str, Records]]:
    """Levels with most events, in their order."""
    levels = [(str(name), list(own)) for name, own in groupby(rows, key=lambda row: row["level"])]
    sizes = sorted((sum(row["events"] for row in own) for _, own in levels), reverse=True)
    least = sizes[min(MOST_LINES, len(sizes)) - 1]
    return [pair for pair in levels if sum(row["events"] for row in pair[1]) >= least][:MOST_LINES]


def _label(level: str, life: Mapping[str, Any]) -> str:
    hours, told = life["half_life_hours"], str(life["form"])
    if hours is not None:
        told += f", half-life {life['bound']} ".rstrip() + f" {_duration(hours)}"
    return f"{level}: {told}" if level else told


def _duration(hours: float) -> str:
    """Hours at three digits, in the unit that suits."""
    for unit, name in ((24.0, "d"), (1.0, "h"), (1 / 60, "min")):
        if hours >= 2 * unit:
            return f"{hours / unit:.3g} {name}"
    return f"{hours * 3600:.3g} s"


def _interval(
    axis: Axes,
    along: np.ndarray,
    rows: Records,
    color: str,
    marker: str,
    label: str,
    *,
    line: bool,
) -> None:
    """Means with intervals; those of too few users are left to the CSV."""
    middle, low, high = (
        np.array([row[name] for row in rows], dtype=np.float64) for name in ("mean", "low", "high")
    )
    known = ~np.isnan(low)
    middle, low, high = middle[known], low[known], high[known]
    axis.errorbar(
        along[known],
        middle,
        yerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
        fmt=marker,
        linestyle="-" if line else "none",
        color=color,
        markersize=4,
        linewidth=0.8,
        elinewidth=0.9,
        capsize=1.5,
        label=label.replace("$", r"\$"),
    )


def _finish(axis: Axes, title: str, along: str) -> None:
    axis.axhline(0, color=REFERENCE, linewidth=0.8, zorder=0)
    axis.set_ylabel(along)
    axis.set_title(title, loc="left", fontsize=10, parse_math=False)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)


def _hide(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.set_visible(False)
