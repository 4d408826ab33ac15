"""Scores as pictures: bars and heat maps in matplotlib, bars in HTML.

Blue bars to the right support, orange bars to the left oppose; side and sign say the same as the
color. Scores that are shares have no side and are grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from llm_influence.influence.facts import column
from llm_influence.types import FloatArray
from llm_influence.utils import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colors of Okabe and Ito (2008), distinct for color-blind readers."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Markers tell lines apart without colors."""
BASELINE = "#8A8F98"
"""Grey of baselines and of zero lines."""
SUPPORTS, OPPOSES, SHARE = "#0072B2", "#D55E00", "#6B7280"


def bars(
    labels: Sequence[str],
    scores: FloatArray,
    *,
    title: str,
    score_name: str,
    share: bool = False,
    axis: Axes | None = None,
) -> Axes:
    """Draw one horizontal bar for each score, the first at the top.

    Args:
        labels: E labels of the bars.
        scores: (E,) lengths of the bars.
        title: Title of the picture.
        score_name: What the scores are; label of the score axis.
        share: Whether scores are shares, which have no side.
        axis: Axes to draw on. Default: a new figure, tall enough for its bars.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if axis is None:
        pyplot = require("matplotlib.pyplot", extra="plot", purpose="Influence.plot")
        figsize = (8, 1.2 + 0.24 * len(labels))
        _, axis = pyplot.subplots(figsize=figsize, layout="constrained")
    places = np.arange(len(labels))
    axis.barh(places, scores, color=_colors(scores, share=share), height=0.72)
    # Names are plain text: matplotlib would read a dollar sign in them as mathematics.
    axis.set_yticks(places, labels, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.axvline(0, color="#9CA3AF", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(score_name)
    axis.set_title(title, fontsize=10, loc="left", parse_math=False)
    return axis


def heatmap(
    scores: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    score_name: str,
    column_name: str,
    axis: Axes | None = None,
) -> Axes:
    """Draw a matrix of scores: blue supports, orange opposes, white is 0, nan is empty.

    Args:
        scores: (R, C) matrix.
        rows: R labels.
        columns: C labels.
        score_name: What the scores are; label of the color bar.
        column_name: What the columns are; label of the horizontal axis.
        axis: Axes to draw on. Default: a new figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    pyplot = require("matplotlib.pyplot", extra="plot", purpose="InfluenceMatrix.plot")
    colors = require("matplotlib.colors", extra="plot", purpose="InfluenceMatrix.plot")
    if axis is None:
        side = 3 + 0.24 * len(rows)
        _, axis = pyplot.subplots(figsize=(side, side), layout="constrained")
    largest = float(np.nanmax(np.abs(scores))) or 1.0
    scale = colors.LinearSegmentedColormap.from_list("influence", [OPPOSES, "white", SUPPORTS])
    image = axis.imshow(scores, cmap=scale, vmin=-largest, vmax=largest)
    axis.figure.colorbar(image, ax=axis, shrink=0.6, label=score_name)
    axis.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axis.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90, parse_math=False)
    axis.set_xlabel(column_name)
    axis.spines[:].set_visible(False)
    return axis


def bars_html(
    labels: Sequence[str], scores: FloatArray, *, text: str, note: str, share: bool = False
) -> str:
    """An HTML fragment with inline style: a text, a bar for each score, and a note.

    All texts are escaped. Bar lengths are in proportion to the scores.

    Args:
        labels: E labels of the bars.
        scores: (E,) lengths of the bars.
        text: Paragraph above the bars.
        note: Small paragraph below them.
        share: Whether scores are shares, which have no side.
    """
    longest = np.abs(scores).max(initial=0.0)
    lengths = np.abs(scores) / longest if longest else np.zeros(len(scores))
    rows = zip(labels, scores < 0, lengths, _colors(scores, share=share), strict=True)
    written = column(scores, share=share)
    table = "".join(_row(*row, number) for row, number in zip(rows, written, strict=True))
    return (
        '<div style="max-width:46em;font:13px/1.5 system-ui,sans-serif">'
        f'<p style="margin:0 0 .6em">{escape(text)}</p>'
        f'<table style="border-collapse:collapse;width:100%;font:inherit">{table}</table>'
        f'<p style="margin:.4em 0 0;opacity:.7">{escape(note)}</p></div>'
    )


def _row(label: str, negative: bool, length: float, color: str, number: str) -> str:
    """A row of three cells; the bar grows from the line between the two middle cells."""
    bar = (
        f'<td style="width:22%;padding:0"><div style="width:{100 * length:.1f}%;height:.8em;'
        f'background:{color};border-radius:2px;float:{"right" if negative else "left"}">'
        "</div></td>"
    )
    blank = '<td style="width:22%;padding:0"></td>'
    cell = "padding:1px 8px 1px 0;text-align:left"
    return (
        f'<tr><td style="{cell}">{escape(label)}</td>{bar + blank if negative else blank + bar}'
        f'<td style="{cell};text-align:right;font-variant-numeric:tabular-nums">'
        f"{number}</td></tr>"
    )


def _colors(scores: FloatArray, *, share: bool) -> list[str]:
    return [SHARE if share else OPPOSES if score < 0 else SUPPORTS for score in scores]
