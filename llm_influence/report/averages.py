"""Mean influence by recency, behaviour, value and gap, straight from an influence table.

Every function takes a table with the columns of `llm_influence.influence.table.SCHEMA`, whole
explanations one after another, one row an event (`llm_influence.influence.table.by_event`), and
returns one row for each method and group:

    method (string), group (string), events (int64), mean_absolute (float64), mean (float64)

in the order of the methods in the table, then of the groups. ``mean_absolute`` says how much a
group matters, ``mean`` in which direction. These are plain descriptions: a group may differ for
reasons that have nothing to do with what names it.

The averages at the foot of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.bins import GAPS, RECENCY
from llm_influence.influence.facts import aligned, decimals_for, percent, plain
from llm_influence.influence.table import explanation_starts
from llm_influence.report.cases import Bar, Scale
from llm_influence.report.tables import CsvLink, csv_link
from llm_influence.types import IntArray

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


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One group: how many events, how much they matter, in which direction."""

    label: str
    events: str
    size: Bar
    size_written: str
    mean: Bar
    mean_written: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One average view; ``mean_zero`` is where zero lies on the track of the means, in percent."""

    title: str
    note: str
    mean_zero: float
    rows: list[PanelRow]
    csv: CsvLink


_VIEWS = (
    ("By recency", "place counted from the end of the history; 1 is the latest event", by_recency),
    ("By time since the event before", "the pause that led up to the event", by_gap),
    ("By behaviour", "what the user did", by_behavior),
    ("By value", "rating or amount, for events that have one", by_value),
)


def panels(table: pa.Table, method: str) -> list[Panel]:
    """The views of one method that have something to show.

    Args:
        table: Whole explanations.
        method: Whose scores are averaged.
    """
    table = table.filter(pc.equal(table["method"], method))
    share = pc.all(pc.equal(table["units"], "share")).as_py()
    drawn = [_panel(title, note, view(table), share) for title, note, view in _VIEWS]
    return [panel for panel in drawn if panel.rows]


def _panel(title: str, note: str, means: pa.Table, share: bool) -> Panel:
    size = Scale.fit(means["mean_absolute"].to_numpy(), share=True)
    # Means share the size's measure, so that a mean near zero looks near zero.
    largest = means["mean_absolute"].to_numpy().max(initial=0.0)
    mean = Scale.fit([*means["mean"].to_pylist(), largest], share=share)
    decimals = decimals_for(means["mean_absolute"])
    rows = [
        PanelRow(
            label=row["group"],
            events=f"{row['events']:,}",
            size=size.bar(row["mean_absolute"]),
            size_written=_written(row["mean_absolute"], decimals, share).lstrip("+"),
            mean=mean.bar(row["mean"]),
            mean_written=_written(row["mean"], decimals, share),
        )
        for row in means.to_pylist()
    ]
    csv = csv_link(title.lower().replace(" ", "_"), means.to_pylist())
    return Panel(title, note, mean.zero, rows, csv)


def _written(value: float, decimals: int, share: bool) -> str:
    return percent(value) if share else aligned(value, decimals)
