"""An analysis as files: JSON, a CSV of every table, and figures whose numbers stand in a CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_influence.influence.facts import MINUS
from llm_influence.utils import require, write_text, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

FORMATS = ("png", "svg")
NOTHING = "–"  # noqa: RUF001 - how a table says that there is no number


@dataclass(frozen=True, slots=True)
class Table:
    """Flat records with the same keys, and the figure drawn of them if there is one."""

    records: Records
    figure: Figure | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an analysis found, ready to be written and printed.

    Attributes:
        name: Of the files: ``factors``, ``dynamics``...
        facts: What was analysed and how: counts, options, what was left out and why.
        tables: By name.
        shown: Lines for the terminal.
    """

    name: str
    facts: Mapping[str, Any]
    tables: Mapping[str, Table] = field(default_factory=dict)
    shown: Sequence[str] = ()

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``<name>.json`` with everything, and ``<name>_<table>.csv``, ``.png``, ``.svg``.

        Returns:
            The files, the JSON last: its presence means that all are there.

        Raises:
            OutputError: The folder cannot be written.
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
    """Records as CSV; an empty cell where there is no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(record) for record in records)
    return text.getvalue()


def aligned(records: Records, columns: Iterable[str]) -> list[str]:
    """Some columns of the records as lines for a terminal, heads first, numbers to the right."""
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


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", extra="plot", purpose="figures of an analysis")
    return figures.Figure(figsize=(width, height), layout="constrained")


def _draw(figure: Figure, path: Path) -> Path:
    """The same bytes for the same figure: SVG has neither a date nor random ids."""
    matplotlib = require("matplotlib", extra="plot", purpose="figures of an analysis")
    kind = path.suffix[1:]
    options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        return write_whole(path, partial(figure.savefig, format=kind, **options))


def _plain(value: Any) -> Any:  # noqa: ANN401 - any tree of records
    """Python's own types, with null for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Any) -> str:  # noqa: ANN401 - a cell
    """A cell as people read it: three digits of a number, yes or no, a dash for nothing."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}".replace("-", MINUS) if value else "0"
    return f"{value:,}" if isinstance(value, int) else str(value)
