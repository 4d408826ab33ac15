"""Facts and tables beside the explanations: model, protocol, metrics, and tables as CSV links."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llm_influence.analysis.output import NOTHING, shown, to_csv

Records = Sequence[Mapping[str, Any]]

# Only for these is it known that more is better; nothing is marked as best in other columns.
_HIGHER_IS_BETTER = re.compile(
    r"(hr|ndcg|mrr|recall|precision|map|auc|accuracy|hit)", re.IGNORECASE
)
_AT_K = re.compile(r"(hr|ndcg|mrr|recall|precision|map|hit)_?@?(\d+)", re.IGNORECASE)
_UPPER = {"mrr", "auc", "gauc", "map"}


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report states beside the explanations. The page escapes every text.

    Attributes:
        title: Heading of the page.
        model: The model, label to value ("Backbone" to "MiniLM, LoRA rank 16").
        protocol: How it was trained, split and measured, label to value.
        metrics: Flat records, one a row of the table, such as ``{"system": "this model",
            "split": "test", "hr10": 0.19, "ndcg10": 0.10}``. Records with different ``head`` make
            separate tables.
        recommendations: By user id, the top list as (item title, probability), best first.
        rules: By user id, a line for each change that a rule made to that list.
    """

    title: str
    model: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, str | float]] = ()
    recommendations: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Cell(NamedTuple):
    """One cell: its text, whether it is a number, and whether it is the best of its split."""

    text: str
    number: bool = False
    best: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of the page.

    Attributes:
        name: Name of its CSV file, without the suffix.
        title: Heading; may be empty.
        heads: Headings of the columns.
        rows: Cells of the rows that the page shows.
        records: All rows, for the CSV.
        note: One sentence, or nothing.
        figure: The figure of the table as a data URI; None where there is none. A browser runs no
            script of a picture and loads nothing for it, whatever the file holds.
    """

    name: str
    title: str
    heads: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    records: Records
    note: str = ""
    figure: str | None = None


def csv_uri(records: Records) -> str:
    """Flat records as a CSV file inside an address, so that the page stays one file."""
    return data_uri("text/csv;charset=utf-8", to_csv(records).encode())


def data_uri(kind: str, content: bytes) -> str:
    """A file of this media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def flat_facts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level of labels and texts, without empty ones."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            flat |= flat_facts(value, f"{label}: ")
        elif isinstance(value, (list, tuple)):
            flat |= {label: ", ".join(map(_element, value))} if value else {}
        elif value is not None and value != "":
            flat[label] = shown(value)
    return flat


def _element(value: object) -> str:
    """An element of a list of facts."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {text}" for name, text in flat_facts(value).items())
    return shown(value)


def metric_grids(records: Records) -> list[Grid]:
    """A table for each ``head`` of the records, in their order; without heads, one table."""
    heads = dict.fromkeys(str(record.get("head", "")) for record in records)
    return [
        metric_grid([record for record in records if str(record.get("head", "")) == head], head)
        for head in heads
    ]


def metric_grid(records: Records, head: str = "") -> Grid:
    """Lay out metrics; on each ``split``, the best of two or more systems is marked.

    Args:
        records: Flat records of texts and numbers. A missing key is an empty cell; a key that is
            NaN in all records is left out.
        head: Title of the table.
    """
    known = (key for record in records for key, value in record.items() if _is_known(value))
    keys = [key for key in dict.fromkeys(known) if key != "head"]
    rows = [[_metric(record, key, records) for key in keys] for record in records]
    heads = [Cell(_heading(key), cell.number) for key, cell in zip(keys, rows[0], strict=True)]
    table = [{key: record.get(key) for key in keys} for record in records]
    name = f"metrics_{head}" if head else "metrics"
    return Grid(name, head.capitalize(), heads, rows, table)


def _is_known(value: str | float | None) -> bool:
    return isinstance(value, str) or (value is not None and math.isfinite(value))


def _metric(record: Mapping[str, Any], key: str, records: Iterable[Mapping[str, Any]]) -> Cell:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return Cell(value or "")
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    rivals = [
        float(other[key])
        for other in records
        if other.get("split") == record.get("split") and not isinstance(other.get(key, ""), str)
    ]
    best = bool(_HIGHER_IS_BETTER.match(key)) and len(rivals) > 1 and value == max(rivals)
    return Cell(text if math.isfinite(value) else NOTHING, True, best)


def _heading(key: str) -> str:
    """``ndcg10`` becomes ``NDCG@10``, ``mrr`` becomes ``MRR``; other keys lose underscores."""
    if match := _AT_K.fullmatch(key):
        return f"{match[1].upper()}@{match[2]}"
    return key.upper() if key in _UPPER else key.replace("_", " ")
