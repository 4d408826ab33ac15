"""The figure of shares: for each channel, all estimators beside each other.

Figures of the audit. Position says everything; colour and marker only say it again.

Figures of the factors. Position says everything; colour and marker only say it again.

Figures of the dynamics. Lines differ by marker as well as by colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_influence.analysis.output import Records, new_figure
from llm_influence.influence.plots import MARKERS, OKABE_ITO, REFERENCE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

*COLORS, BLACK = OKABE_ITO
WIDTH = 0.76
"""Of the lines of one channel, of the distance between channels."""


def draw_shares(shares: Records, channels: Sequence[str], estimators: Sequence[str]) -> Figure:
    """A row a channel; in it, a point with its interval an estimator."""
    figure = new_figure(8.4, 1.3 + 0.12 * len(channels) * (len(estimators) + 1))
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
        _finish_dynamics_figures(axis, factor, "mean influence")
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
        _finish_dynamics_figures(axis, factor, "mean influence at usual ages")
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


def _finish_dynamics_figures(axis: Axes, title: str, along: str) -> None:
    axis.axhline(0, color=REFERENCE, linewidth=0.8, zorder=0)
    axis.set_ylabel(along)
    axis.set_title(title, loc="left", fontsize=10, parse_math=False)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)


def _hide(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.set_visible(False)
