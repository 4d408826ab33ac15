"""An analysis as files: JSON, a CSV file for each table, and shared parts of the figures.

Figures carry their information by position; color and marker only repeat it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_influence.influence.facts import MINUS
from llm_influence.influence.plots import BASELINE, OKABE_ITO
from llm_influence.types import FloatArray
from llm_influence.utils import require, without_formula, write_text, write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
Records = Sequence[Mapping[str, Any]]

FORMATS = ("png", "svg")
NOTHING = "–"  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Table:
    """Flat records with the same keys, and their figure if there is one."""

    records: Records
    figure: Figure | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of an analysis, ready to be written and printed.

    Attributes:
        name: Start of the file names: ``factors``, ``dynamics``...
        facts: What was analysed and how: counts, options, what was left out and why.
        tables: Tables by name.
        shown: Lines for the terminal.
    """

    name: str
    facts: Mapping[str, Any]
    tables: Mapping[str, Table] = field(default_factory=dict)
    shown: Sequence[str] = ()

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``<name>.json`` with everything, and ``<name>_<table>.csv``, ``.png``, ``.svg``.

        Returns:
            The files. The JSON file is written last: if it exists, all files are complete.
        """
        folder, written = Path(folder), []
        for key, table in self.tables.items():
            stem = folder / f"{self.name}_{key}"
            written.append(write_text(stem.with_suffix(".csv"), to_csv(table.records)))
            if table.figure is not None:
                written += [_draw(table.figure, stem.with_suffix(f".{kind}")) for kind in FORMATS]
        tree = {
            "analysis": self.name,
            **self.facts,
            "tables": {key: list(table.records) for key, table in self.tables.items()},
        }
        text = json.dumps(_plain(tree), indent=2, ensure_ascii=False, allow_nan=False)
        return [*written, write_text(folder / f"{self.name}.json", text + "\n")]


def to_csv(records: Records) -> str:
    """Records as CSV, with an empty cell for a missing number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: without_formula(value) for name, value in _plain(record).items()}
        for record in records
    )
    return text.getvalue()


def aligned(records: Records, columns: Iterable[str]) -> list[str]:
    """Some columns of the records as lines for a terminal: names first, numbers to the right."""
    columns = list(columns)
    cells = [columns, *([shown(record[name]) for name in columns] for record in records)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    left = [
        all(isinstance(record[name], str) for record in records) and bool(records)
        for name in columns
    ]
    return [
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]


def with_interval(name: str, value: float, half: float, prefix: str = "") -> Record:
    """A value under its name, and the ends of its interval as ``low`` and ``high``."""
    ends = {f"{prefix}low": float(value - half), f"{prefix}high": float(value + half)}
    return {name: float(value), **ends}


def closing_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lines that name what was left out, and why; then the warning of chosen targets."""
    left_out = facts.get("left_out", {}).items()
    warning = [f"warning: {facts['warning']}"] if facts.get("warning") else []
    warning += [f"warning: {facts['incomplete']}"] if facts.get("incomplete") else []
    return [f"left out: {name} ({reason})" for name, reason in left_out] + warning


def shown(value: Any) -> str:  # noqa: ANN401
    """A cell for people: three digits of a number, yes or no, a dash for nothing."""
    value = _plain(value)
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}".replace("-", MINUS) if value else "0"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """The same in Python's own types, with None for nan and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- parts of figures ------------------------------------------------------------------------

BLUE, ORANGE = OKABE_ITO[:2]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display."""
    figures = require("matplotlib.figure", extra="plot", purpose="figures of an analysis")
    return figures.Figure(figsize=(width, height), layout="constrained")


def _draw(figure: Figure, path: Path) -> Path:
    """Write a figure, always with the same bytes: SVG gets no date and no random ids."""
    matplotlib = require("matplotlib", extra="plot", purpose="figures of an analysis")
    kind = path.suffix[1:]
    options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        return write_whole(path, partial(figure.savefig, format=kind, **options))


def numbers(rows: Records, name: str) -> FloatArray:
    """(rows,) a column of numbers, nan where there is none."""
    return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)


def points(
    axis: Axes,
    rows: Records,
    columns: tuple[str, str, str],
    *,
    places: FloatArray | None = None,
    scale: FloatArray | float = 1.0,
    color: str = BLUE,
    marker: str = "o",
    **options: Any,  # noqa: ANN401
) -> Artist:
    """Draw a value with its interval for each row, from top to bottom; returns the legend mark."""
    middle, low, high = (numbers(rows, name) / scale for name in columns)
    marks = axis.errorbar(
        middle,
        np.arange(len(rows)) if places is None else places,
        xerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
        fmt=marker,
        color=color,
        **{"markersize": 4.5, "elinewidth": 1.1, "capsize": 2, **options},
    )
    mark: Artist = marks.lines[0]
    return mark


def finish_rows(axis: Axes, names: Sequence[str], label: str) -> None:
    """Name the rows and the score axis, and draw the zero line."""
    axis.set_yticks(np.arange(len(names)), names, fontsize=8, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.axvline(0, color=BASELINE, linewidth=0.8, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel(label)


def draw_rows(
    rows: Records, columns: tuple[str, str, str], names: Sequence[str], label: str
) -> Figure:
    """A figure with a value and its interval (``columns``) for each row."""
    figure = new_figure(7.2, 1.3 + 0.3 * len(rows))
    axis = figure.subplots()
    points(axis, rows, columns)
    finish_rows(axis, names, label)
    return figure


def panels(rows: Records, width: float, height: float, across: int) -> tuple[Figure, Any]:
    """A figure with a panel for each factor, and (panel, factor, its rows) triples."""
    groups = [(str(name), list(own)) for name, own in groupby(rows, key=lambda row: row["factor"])]
    wide, down = min(across, len(groups)), -(-len(groups) // across)
    figure = new_figure(width * wide, height * down)
    axes = figure.subplots(down, wide, squeeze=False).ravel()
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    return figure, [(axis, *group) for axis, group in zip(axes, groups, strict=False)]
