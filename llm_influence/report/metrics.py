"""The table that says how well the model predicts, from flat records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """Headings and rows."""

    headings: list[str]
    rows: list[list[MetricCell]]


def metric_table(records: Sequence[Mapping[str, str | float]]) -> MetricTable:
    """Lay records out; on each ``split`` the best of two or more systems is marked.

    Args:
        records: Flat records of texts and numbers. A key that a record lacks is an empty cell.
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    rows = [
        [_cell(record.get(key), _is_best(record, key, records)) for key in keys]
        for record in records
    ]
    return MetricTable([_heading(key) for key in keys], rows)


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
    return MetricCell(text, number=True, best=best)


def _heading(key: str) -> str:
    """``ndcg10`` is ``NDCG@10``, ``mrr`` is ``MRR``; other keys lose their underscores."""
    if match := _AT_K.fullmatch(key):
        return f"{match[1].upper()}@{match[2]}"
    if key in _SHORT:
        return key.upper()
    return key.replace("_", " ")
