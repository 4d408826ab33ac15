"""Colours and markers of every figure: they stay apart for the colour-blind and in grey print.

An influence as a picture: bars along the timeline, in matplotlib or in a scrap of HTML.

Blue to the right supports, orange to the left opposes: side and sign say it too, so that the
colours are never needed to read it. Scores that are shares have no side and are grey.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from llm_influence.influence.facts import aligned, card_words, decimals_for, percent, plain, tidy
from llm_influence.influence.influence import UNITS, Influence, InfluenceMatrix
from llm_influence.types import Event, FloatArray
from llm_influence.utils import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours (2008); markers tell lines apart without them."""
REFERENCE = "#8A8F98"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


SUPPORTS, OPPOSES, SHARE = "#0072B2", "#D55E00", "#6B7280"
_LONGEST_NAME = 48


def plot(influence: Influence, axis: Axes | None = None) -> Axes:
    """Draw one bar an event, the oldest at the top and the latest at the bottom.

    Args:
        influence: The explanation.
        axis: Where to draw; a new figure, tall enough for its events, by default.

    Returns:
        The matplotlib axes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    influence = influence.by_event()
    if axis is None:
        pyplot = require("matplotlib.pyplot", extra="plot", purpose="Influence.plot")
        height = 1.2 + 0.24 * len(influence.events)
        _, axis = pyplot.subplots(figsize=(8, height), layout="constrained")
    places = np.arange(len(influence.events))
    axis.barh(places, influence.scores, color=_colors(influence), height=0.72)
    # Names are text, also where they hold a dollar sign: matplotlib would read it as maths.
    labels = [_label(event) for event in influence.events]
    axis.set_yticks(places, labels, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.axvline(0, color="#9CA3AF", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(_axis_name(influence))
    name = _short(tidy(influence.target_name or influence.target_id))
    chance = "" if math.isnan(influence.prediction) else f" ({percent(influence.prediction)})"
    axis.set_title(name + chance, fontsize=10, loc="left", parse_math=False)
    return axis


def plot_matrix(matrix: InfluenceMatrix, axis: Axes | None = None) -> Axes:
    """Draw a map: an event a row, the prediction after each event a column.

    Blue supports, orange opposes, white is nothing; the corner where an event would come after
    the prediction is empty.

    Args:
        matrix: The influences.
        axis: Where to draw; a new figure by default.

    Returns:
        The matplotlib axes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    pyplot = require("matplotlib.pyplot", extra="plot", purpose="InfluenceMatrix.plot")
    colors = require("matplotlib.colors", extra="plot", purpose="InfluenceMatrix.plot")
    size = len(matrix.events)
    if axis is None:
        side = 3 + 0.24 * size
        _, axis = pyplot.subplots(figsize=(side, side), layout="constrained")
    reach = float(np.nanmax(np.abs(matrix.scores))) or 1.0
    scale = colors.LinearSegmentedColormap.from_list("influence", [OPPOSES, "white", SUPPORTS])
    image = axis.imshow(matrix.scores, cmap=scale, vmin=-reach, vmax=reach)
    unit = UNITS.get(matrix.target, "log-odds")
    axis.figure.colorbar(image, ax=axis, shrink=0.6, label=f"influence ({unit})")
    names = [_short(tidy(name)) for name in matrix.target_names]
    labels = [_label(event) for event in matrix.events]
    axis.set_yticks(range(size), labels, fontsize=8, parse_math=False)
    axis.set_xticks(range(size), names, fontsize=8, rotation=90, parse_math=False)
    axis.set_xlabel("prediction after each event")
    axis.spines[:].set_visible(False)
    return axis


def to_html(influence: Influence) -> str:
    """A small HTML fragment with its style inline: the sentence, then a bar an event.

    Everything that comes from the data is escaped. Bar lengths are in proportion to the scores.
    """
    from llm_influence.influence.text import to_text

    influence = influence.by_event()
    says = escape(to_text(influence)) if len(influence.events) else "No event was explained."
    rows = "".join(
        _html_row(event, float(score), length, color, written)
        for event, score, length, color, written in zip(
            influence.events,
            influence.scores,
            bar_lengths(influence.scores),
            _colors(influence),
            column(influence),
            strict=True,
        )
    )
    return (
        '<div style="max-width:46em;font:13px/1.5 system-ui,sans-serif">'
        f'<p style="margin:0 0 .6em">{says}</p>'
        f'<table style="border-collapse:collapse;width:100%;font:inherit">{rows}</table>'
        f'<p style="margin:.4em 0 0;opacity:.7">{escape(_axis_name(influence))}, oldest event '
        f"first; {escape(', '.join(card_words(influence)))}</p></div>"
    )


def bar_lengths(scores: FloatArray) -> FloatArray:
    """(E,) lengths in 0..1 of the longest bar; all 0 where every score is 0."""
    longest = np.abs(scores).max(initial=0.0)
    return np.abs(scores) / longest if longest else np.zeros(len(scores))


def column(influence: Influence) -> list[str]:
    """(E,) the scores as a column of numbers: equal decimals, or percentages for shares."""
    if influence.quality.units == "share":
        return [percent(score) for score in influence.scores]
    decimals = decimals_for(influence.scores)
    return [aligned(score, decimals) for score in influence.scores]


def _html_row(event: Event, score: float, length: float, color: str, written: str) -> str:
    """One event; its bar grows from the middle, so the one left of it sits at the right edge."""
    side, edge = ("left", "right") if score < 0 else ("right", "left")
    bar = (
        f'<td style="width:22%;padding:0"><div style="width:{100 * length:.1f}%;height:.8em;'
        f'background:{color};border-radius:2px;float:{edge}">'
        "</div></td>"
    )
    blank = '<td style="width:22%;padding:0"></td>'
    cell = "padding:1px 8px 1px 0;text-align:left"
    return (
        f'<tr><td style="{cell}">{escape(_label(event))}</td>'
        f"{bar + blank if side == 'left' else blank + bar}"
        f'<td style="{cell};text-align:right;font-variant-numeric:tabular-nums">'
        f"{written}</td></tr>"
    )


def _colors(influence: Influence) -> list[str]:
    if influence.quality.units == "share":
        return [SHARE] * len(influence.events)
    return [OPPOSES if score < 0 else SUPPORTS for score in influence.scores]


def _axis_name(influence: Influence) -> str:
    return f"influence ({influence.unit}) by {influence.quality.method}"


def _label(event: Event) -> str:
    value = "" if event.value is None else f" {plain(event.value)}"
    return f"{_short(tidy(event.name))} · {event.behavior}{value}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip() + "…"
