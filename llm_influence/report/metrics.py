"""The table that says how well the model predicts, from flat records."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_influence.analysis.output import NOTHING
from llm_influence.report.csv_link import CsvLink, csv_link

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
    keys = list(dict.fromkeys(k for record in records for k, v in record.items() if _said(v)))
    rows = [
        [_cell(record.get(key), _is_best(record, key, records)) for key in keys]
        for record in records
    ]
    whole = [{key: record.get(key) for key in keys} for record in records]
    name = f"metrics_{head}" if head else "metrics"
    return MetricTable([_heading(key) for key in keys], rows, head, csv_link(name, whole))


def _said(value: str | float | None) -> bool:
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
