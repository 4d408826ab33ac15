"""Tables of the report: metrics, facts, and mean influence by kind of event."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.columns import GAPS, RECENCY
from llm_influence.analysis.output import NOTHING, shown, to_csv
from llm_influence.influence.facts import aligned, decimals_for, percent, plain
from llm_influence.influence.table import explanation_starts
from llm_influence.types import IntArray

Records = Sequence[Mapping[str, Any]]

# Only for these is it known that more is better; nothing is marked as best in other columns.

_LEAST_SIDE = 0.08


_NOTHING = 1e-200


class Bar(NamedTuple):
    """One bar on its track, in percent of the track's width.

    Attributes:
        left: Where it begins.
        width: How long it is.
        kind: ``for``, ``against`` or ``share``; names the color.
    """

    left: float
    width: float
    kind: str


class Scale(NamedTuple):
    """A track with a zero on it, as much room on each side as the scores need.

    Attributes:
        zero: Place of zero, in percent of the track.
        unit: Percent of the track for a score of 1, the same on both sides.
        share: Whether scores are shares, which have no side.
    """

    zero: float
    unit: float
    share: bool = False

    @classmethod
    def fit(cls, scores: npt.ArrayLike, *, share: bool = False) -> Scale:
        """The scale on which the longest bar of ``scores`` reaches the end of its side."""
        values = np.asarray(scores, dtype=np.float64)
        up, down = max(values.max(initial=0.0), 0.0), max(-values.min(initial=0.0), 0.0)
        if up + down < _NOTHING:
            return cls(zero=0.0 if share else 50.0, unit=0.0, share=share)
        zero = 0.0 if share and not down else down / (up + down)
        if not share:
            zero = min(max(zero, _LEAST_SIDE), 1 - _LEAST_SIDE)
        room = [zero / down] if down else []
        room += [(1 - zero) / up] if up else []
        return cls(zero=100 * zero, unit=100 * min(room), share=share)

    def bar(self, score: float) -> Bar:
        """The bar of a score."""
        width = abs(score) * self.unit
        kind = "share" if self.share else "against" if score < 0 else "for"
        return Bar(self.zero - width if score < 0 else self.zero, width, kind)


_HIGHER_IS_BETTER = re.compile(
    r"(hr|ndcg|mrr|recall|precision|map|auc|accuracy|hit)", re.IGNORECASE
)
_AT_K = re.compile(r"(hr|ndcg|mrr|recall|precision|map|hit)_?@?(\d+)", re.IGNORECASE)
_UPPER = {"mrr", "auc", "gauc", "map", "ndcg"}


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
        verdict: A sentence on a baseline that is ahead of the model; empty without any.
        recommendations: By user id, the top list as (item title, probability), best first.
        rules: By user id, a line for each change that a rule made to that list.
        learned: By user id, a line for each training user that most supports the first item of
            that list (`TrainingInfluence.lines`).
    """

    title: str
    model: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, str | float]] = ()
    verdict: str = ""
    recommendations: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    learned: Mapping[str, Sequence[str]] = field(default_factory=dict)


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
    name, comma, kind = key.partition(", ")  # "ndcg, revisit": of one kind of question
    name = name.upper() if name in _UPPER else name.replace("_", " ")
    return f"{name}{comma}{kind}"


# A value with more distinct numbers than this (amounts, prices) is cut into ranges.
_MOST_VALUES = 10
_RANGES = 5


def by_recency(table: pa.Table) -> pa.Table:
    """Groups ``"1"`` (the latest event of a history), ``"2"``..., ``"6 to 10"``...

    Raises:
        DataError: Rows of an explanation are missing or out of order.
    """
    starts = explanation_starts(table)
    lengths = np.diff(starts, append=len(table))
    from_end = np.repeat(lengths, lengths) - 1 - table["position"].to_numpy()
    return _means(table, RECENCY.codes(from_end), RECENCY.names)


def by_behavior(table: pa.Table) -> pa.Table:
    """Groups are the behaviours, in alphabetical order."""
    names = sorted(pc.unique(table["behavior"]).to_pylist())
    codes = pc.index_in(table["behavior"], pa.array(names, pa.string())).to_numpy()
    return _means(table, codes, names)


def by_gap(table: pa.Table) -> pa.Table:
    """Groups of the time since the event before, from ``"first event"`` to a month or more."""
    gaps = pc.fill_null(table["gap_seconds"], -1).to_numpy()
    return _means(table, GAPS.codes(gaps), GAPS.names)


def by_value(table: pa.Table) -> pa.Table:
    """Groups ``"rate 1"``, ``"rate 2"``...; events without a value are left out.

    A behaviour whose values are more than ten distinct numbers is cut into five ranges of about
    as many events each: ``"purchase 3 to 9.99"``.
    """
    table = table.filter(pc.is_valid(table["value"]))
    behaviors = np.asarray(table["behavior"].to_pylist(), dtype=object)
    values = table["value"].to_numpy()
    codes = np.zeros(len(table), dtype=np.int64)
    labels: list[str] = []
    for behavior in sorted(set(behaviors)):
        rows = np.flatnonzero(behaviors == behavior)
        parts, names = _value_groups(values[rows])
        codes[rows] = len(labels) + parts
        labels += [f"{behavior} {name}" for name in names]
    return _means(table, codes, labels)


def _value_groups(values: npt.NDArray[np.floating]) -> tuple[IntArray, list[str]]:
    """(n,) group codes and the group names of one behaviour's values."""
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= _MOST_VALUES:
        return codes, [plain(value) for value in distinct]
    inner = np.unique(np.quantile(values, np.linspace(0, 1, _RANGES + 1)[1:-1]))
    codes = np.searchsorted(inner, values, side="right")
    used, codes = np.unique(codes, return_inverse=True)
    spans = [values[codes == code] for code in range(len(used))]
    return codes, [f"{plain(span.min())} to {plain(span.max())}" for span in spans]


def _means(table: pa.Table, codes: IntArray, labels: Sequence[str]) -> pa.Table:
    """Group rows by method and by ``codes`` (rows,), which index ``labels``."""
    methods = pc.unique(table["method"])
    grouped = pa.table(
        {
            "method_code": pc.index_in(table["method"], methods),
            "code": pa.array(codes, pa.int64()),
            "score": table["score"],
            "absolute": pc.abs(table["score"]),
        }
    ).group_by(["method_code", "code"])
    means = grouped.aggregate([("score", "count"), ("absolute", "mean"), ("score", "mean")])
    means = means.sort_by([("method_code", "ascending"), ("code", "ascending")])
    return pa.table(
        {
            "method": methods.take(means["method_code"]),
            "group": pa.array(labels, pa.string()).take(means["code"]),
            "events": means["score_count"],
            "mean_absolute": means["absolute_mean"],
            "mean": means["score_mean"],
        }
    )


_VIEWS = (
    ("By recency", "place counted from the end of the history; 1 is the latest event", by_recency),
    ("By time since the event before", "time between the event and the one before", by_gap),
    ("By behaviour", "what the user did", by_behavior),
    ("By value", "rating or amount, for events that have one", by_value),
)


def panels(table: pa.Table, method: str) -> list[dict[str, Any]]:
    """The averages of one method as panels of the page, without empty ones.

    Args:
        table: Whole explanations.
        method: The method whose scores are averaged.

    Returns:
        Panels with ``title``, ``note``, ``name`` of the CSV, its ``records``, ``zero`` (place of
        zero on the track of the means, in percent) and ``rows``.
    """
    table = table.filter(pc.equal(table["method"], method))
    share = pc.all(pc.equal(table["units"], "share")).as_py()
    drawn = [_panel(title, note, view(table).to_pylist(), share) for title, note, view in _VIEWS]
    return [panel for panel in drawn if panel["rows"]]


def _panel(title: str, note: str, means: list[dict[str, Any]], share: bool) -> dict[str, Any]:
    sizes, directions = ([row[name] for row in means] for name in ("mean_absolute", "mean"))
    size = Scale.fit(sizes, share=True)
    # Means use the measure of the sizes, so that a mean near zero looks near zero.
    mean = Scale.fit([*directions, max(sizes, default=0.0)], share=share)
    decimals = decimals_for(sizes)

    def written(value: float) -> str:
        return percent(value) if share else aligned(value, decimals)

    rows = [
        {
            **row,
            "size_bar": size.bar(row["mean_absolute"]),
            "size_text": written(row["mean_absolute"]).lstrip("+"),
            "mean_bar": mean.bar(row["mean"]),
            "mean_text": written(row["mean"]),
        }
        for row in means
    ]
    name = title.lower().replace(" ", "_")
    return {
        **{"title": title, "note": note, "name": name, "records": means},
        **{"zero": mean.zero, "rows": rows},
    }
