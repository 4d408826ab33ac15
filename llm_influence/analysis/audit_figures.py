"""Figures of the audit. Position says everything; colour and marker only say it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_influence.analysis.output import Records, new_figure
from llm_influence.influence.palette import MARKERS, OKABE_ITO, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GAPS = 30
"""Rows of the figure of gaps; the table has all."""


def draw_gaps(rows: Records) -> Figure:
    """Gaps in units of a user's standard deviation, plain and among users with the same history."""
    order = sorted(rows, key=lambda row: (not row["found"], row["p_given_history"], row["p_gap"]))
    kept = {id(row) for row in order[:MOST_GAPS]}
    shown = [row for row in rows if id(row) in kept]
    figure = new_figure(9, 1.4 + 0.3 * len(shown))
    axis = figure.subplots()
    places = np.arange(len(shown))
    columns = (("gap", "as it is"), ("given_history", "among users with the same history"))
    for number, (name, label) in enumerate(columns):
        scale = np.array([row["spread"] for row in shown])
        middle, low, high = (
            np.array([row[f"{name}{end}"] for row in shown]) / scale
            for end in ("", "_low", "_high")
        )
        _points(axis, places + 0.2 * number - 0.1, (middle, low, high), number, label)
    names = [f"{row['measure']}, {row['group']}" + (" *" if row["found"] else "") for row in shown]
    _finish(axis, names)
    axis.set_xlabel(
        "difference from all other users, in standard deviations over users\n"
        "(95% intervals of each alone; * holds for all measures together)"
    )
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    return figure


def draw_proxies(rows: Records, most: int) -> Figure | None:
    """How well each proxy tells the groups apart, and how much influence it carries."""
    shown = list(rows[:most])
    if not shown:
        return None
    figure = new_figure(10, 1.3 + 0.34 * len(shown))
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(shown))
    left.barh(places, [row["strength"] for row in shown], color=OKABE_ITO[0], height=0.6)
    middle, low, high = (
        np.array([row[name] for row in shown]) for name in ("share", "share_low", "share_high")
    )
    _points(right, places, (middle, low, high), 1, "")
    _finish(left, [f"{row['level']} ({row['group']})" for row in shown])
    right.spines[["top", "right"]].set_visible(False)
    right.axvline(0, color=REFERENCE, linewidth=0.8, zorder=0)
    left.set_xlabel("how well it tells the groups apart (0 to 1)")
    right.set_xlabel("share of all influence that it carries")
    return figure


def draw_flips(rows: Records) -> Figure:
    """Share of users who get another first recommendation, by the value put in."""
    figure = new_figure(7, 1.3 + 0.34 * len(rows))
    axis = figure.subplots()
    columns = ("changed", "changed_low", "changed_high")
    numbers = tuple(np.array([row[name] for row in rows], dtype=np.float64) for name in columns)
    _points(axis, np.arange(len(rows)), numbers, 0, "")
    _finish(axis, [f"{row['feature']}: {row['value']} as {row['other']}" for row in rows])
    axis.set_xlabel("share of users whose first recommendation changes")
    return figure


def _points(axis: Axes, places: Any, numbers: Any, number: int, label: str) -> None:  # noqa: ANN401
    middle, low, high = numbers
    axis.errorbar(
        middle,
        places,
        xerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
        fmt=MARKERS[number],
        color=OKABE_ITO[number],
        markersize=4.5,
        elinewidth=1.1,
        capsize=2,
        label=label or None,
    )


def _finish(axis: Axes, names: list[str]) -> None:
    axis.set_yticks(np.arange(len(names)), names, fontsize=8, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.axvline(0, color=REFERENCE, linewidth=0.8, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
