"""Intervals, differences, tables and warnings of a result."""

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.result import (
    SCHEMA,
    FaithfulnessResult,
    misleading_lines,
    to_csv,
    to_markdown,
)


def result(columns, users=None):
    """``{method: {metric: values}}`` as a result; random is the baseline."""
    rows = [
        {
            "history": n,
            "user_id": users[n] if users else f"u{n}",
            "removal": "drop",
            "method": method,
            "metric": metric,
            "value": float(value),
        }
        for method, metrics in columns.items()
        for metric, values in metrics.items()
        for n, value in enumerate(values)
    ]
    return FaithfulnessResult(pa.Table.from_pylist(rows, schema=SCHEMA), list(columns), ["random"])


def test_intervals_cover_the_truth_about_as_often_as_claimed():
    draw = np.random.default_rng(0)
    found = [
        result({"random": {"lds": draw.normal(0.3, 1, size=50)}}).interval("random", "lds")
        for _ in range(200)
    ]
    covered = np.mean([one.low <= 0.3 <= one.high for one in found])
    assert 0.90 <= covered <= 0.985


def test_differences_are_paired():
    hard = np.random.default_rng(0).normal(0, 10, size=60)
    found = result({"ours": {"lds": hard + 0.1}, "random": {"lds": hard}})
    apart = found.difference("ours", "random", "lds")
    assert (apart.mean, apart.low, apart.high) == pytest.approx((0.1, 0.1, 0.1))
    assert apart.sign == 1
    assert found.interval("ours", "lds").low < 0  # alone, each is uncertain


def test_histories_of_one_user_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 5)
    alone = result({"random": {"lds": values}}).interval("random", "lds")
    owned = result({"random": {"lds": values}}, [f"u{n // 5}" for n in range(100)])
    together = owned.interval("random", "lds")
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(5), rel=0.15)


def test_what_is_not_defined_is_left_out_and_counted():
    found = result(
        {"random": {"lds": [1, np.nan, 3], "infidelity": [np.nan] * 3, "evaluations": [2] * 3}}
    )
    assert found.interval("random", "lds").mean == 2
    assert found.interval("random", "lds").histories == 2
    assert found.interval("random", "infidelity").histories == 0
    record = next(r for r in found.summary() if r["metric"] == "infidelity")
    assert record["mean"] is None
    assert "n/a" in to_markdown(found)
    with pytest.raises(ExplanationError, match="'abpc' of 'random'"):
        found.values("random", "abpc")


def test_methods_that_do_not_beat_a_baseline_are_named():
    draw = np.random.default_rng(0)
    base = {"lds": draw.normal(size=40), "deletion_auc": draw.normal(size=40)}
    good = {"lds": base["lds"] + 1, "deletion_auc": base["deletion_auc"] - 1}
    bad = {"lds": base["lds"] - 1, "deletion_auc": base["deletion_auc"] + draw.normal(size=40)}
    for name in (base, good, bad):
        name["evaluations"] = [2.0] * 40
    found = result({"good": good, "bad": bad, "random": base})
    lines = misleading_lines(found)
    assert [line.partition(":")[0] for line in lines] == [
        "bad is worse than random on lds",
        "bad is no better than random on deletion_auc",
    ]
    rows = {line.split("|")[1].strip(): line for line in to_markdown(found).splitlines()[4:]}
    assert "°" in rows["`bad`"]
    assert "°" not in rows["`good`"] + rows["`random` (baseline)"]
    assert len(to_csv(found).splitlines()) == 1 + 3 * 3
