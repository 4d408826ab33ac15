"""A table as a link that a reader saves as a CSV file; the page stays one file.

What a report says beside the explanations themselves.

The table that says how well the model predicts, from flat records.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_influence.analysis.output import NOTHING, shown, to_csv


@dataclass(frozen=True, slots=True)
class CsvLink:
    """Where a link leads.

    Attributes:
        name: Of the file that is saved.
        address: All of it, as a data URI.
    """

    name: str
    address: str


def csv_link(name: str, records: Sequence[Mapping[str, Any]]) -> CsvLink:
    """The link of flat records; ``name`` is the file's, without its ending."""
    return CsvLink(f"{name}.csv", data_uri("text/csv;charset=utf-8", to_csv(records).encode()))


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """The prompt of a report. Every text may be anything: the page escapes it.

    Attributes:
        title: Heading of the page.
        model: What the model is, label to value ("Backbone" to "MiniLM, LoRA rank 16").
        protocol: How it was trained, split and measured, label to value.
        metrics: Flat records, one a row of the table, such as ``{"system": "this model",
            "split": "test", "hr10": 0.19, "ndcg10": 0.10}``. Texts and numbers; the first keys
            of the first record are the first columns. Records with different ``head`` make tables
            of their own.
        recommendations: By user id, the top list as (item title, probability), best first.
        rules: By user id, a line for each change that a rule made to that list.
    """

    title: str
    model: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, str | float]] = ()
    recommendations: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)


def flat_facts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level of labels and texts; what says nothing is left out."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            flat |= flat_facts(value, f"{label}: ")
        elif isinstance(value, (list, tuple)):
            flat |= {label: ", ".join(_said(each) for each in value)} if value else {}
        elif value is not None and value != "":
            flat[label] = shown(value)
    return flat


def _said(value: object) -> str:
    """An element of a list of facts."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {text}" for name, text in flat_facts(value).items())
    return shown(value)


# Only of these is it known that more is better; nothing is marked as best in other columns.
_HIGHER_IS_BETTER = re.compile(r"(hr|ndcg|mrr|recall|precision|map|auc|accuracy|hit)", re.I)
_AT_K = re.compile(r"(hr|ndcg|mrr|recall|precision|map|hit)_?@?(\d+)", re.I)
_SHORT = {"mrr", "auc", "gauc", "map"}


@dataclass(frozen=True, slots=True)
class MetricCell:
    """One cell: its text, whether it is a number, and whether it is the best on its split."""

    text: str
    number: bool
    best: bool


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Headings and rows; ``head`` names what is predicted where there are several tables."""

    headings: list[str]
    rows: list[list[MetricCell]]
    head: str
    csv: CsvLink


def metric_tables(records: Sequence[Mapping[str, str | float]]) -> list[MetricTable]:
    """A table for each ``head`` of the records, in their order; without heads, one."""
    heads = list(dict.fromkeys(str(record.get("head", "")) for record in records))
    groups = {head: [each for each in records if each.get("head", "") == head] for head in heads}
    return [
        metric_table([{k: v for k, v in each.items() if k != "head"} for each in group], head)
        for head, group in groups.items()
    ]


def metric_table(records: Sequence[Mapping[str, str | float]], head: str = "") -> MetricTable:
    """Lay records out; on each ``split`` the best of two or more systems is marked.

    Args:
        records: Flat records of texts and numbers. A key that a record lacks is an empty cell; one
            that is a number nowhere (NaN in all) is left out.
        head: Name of the table.
    """
    keys = list(
        dict.fromkeys(k for record in records for k, v in record.items() if _said_metrics(v))
    )
    rows = [
        [_cell(record.get(key), _is_best(record, key, records)) for key in keys]
        for record in records
    ]
    whole = [{key: record.get(key) for key in keys} for record in records]
    name = f"metrics_{head}" if head else "metrics"
    return MetricTable([_heading(key) for key in keys], rows, head, csv_link(name, whole))


def _said_metrics(value: str | float | None) -> bool:
    return isinstance(value, str) or (value is not None and math.isfinite(value))


def _is_best(
    record: Mapping[str, str | float], key: str, records: Sequence[Mapping[str, str | float]]
) -> bool:
    if not _HIGHER_IS_BETTER.match(key) or isinstance(record.get(key, ""), str):
        return False
    rivals = [
        other[key]
        for other in records
        if other.get("split") == record.get("split") and not isinstance(other.get(key, ""), str)
    ]
    return len(rivals) > 1 and record[key] == max(map(float, rivals))


def _cell(value: str | float | None, best: bool) -> MetricCell:
    if value is None or isinstance(value, str):
        return MetricCell(value or "", number=False, best=False)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    text = text if math.isfinite(value) else NOTHING
    return MetricCell(text, number=True, best=best)


def _heading(key: str) -> str:
    """``ndcg10`` is ``NDCG@10``, ``mrr`` is ``MRR``; other keys lose their underscores."""
    if match := _AT_K.fullmatch(key):
        return f"{match[1].upper()}@{match[2]}"
    if key in _SHORT:
        return key.upper()
    return key.replace("_", " ")
