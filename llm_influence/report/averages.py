"""Mean influence by recency, behaviour, value and gap, from an influence table.

Each of the four functions takes whole explanations, one row an event
(`llm_influence.influence.influence.by_event`), and returns one row for each method and group:

    method (string), group (string), events (int64), mean_absolute (float64), mean (float64)

in the order of the methods in the table, then of the groups. ``mean_absolute`` shows how much a
group matters, ``mean`` in which direction. These are descriptions: a group may differ for reasons
other than the one that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.columns import GAPS, RECENCY
from llm_influence.influence.facts import aligned, decimals_for, percent, plain
from llm_influence.influence.table import explanation_starts
from llm_influence.report.cases import Scale
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
