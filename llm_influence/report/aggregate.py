"""Mean influence by recency, behaviour, value and gap, straight from an influence table.

Every function takes a table with the columns of `llm_influence.influence.table.SCHEMA`, whole
explanations one after another, one row an event (`llm_influence.influence.table.by_event`), and
returns one row for each method and group:

    method (string), group (string), events (int64), mean_absolute (float64), mean (float64)

in the order of the methods in the table, then of the groups. ``mean_absolute`` says how much a
group matters, ``mean`` in which direction. These are plain descriptions: a group may differ for
reasons that have nothing to do with what names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.buckets import GAPS, RECENCY
from llm_influence.influence.numbers import plain
from llm_influence.influence.table import explanation_starts
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
