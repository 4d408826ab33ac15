"""Averages against values worked out by hand."""

import pytest

from llm_influence.errors import DataError
from llm_influence.influence.influence import to_arrow
from llm_influence.report.tables import by_behavior, by_gap, by_recency, by_value

HOUR, DAY = 3_600, 86_400


@pytest.fixture
def table(make):
    return to_arrow(
        [
            make(
                [1.0, -2.0, 3.0],
                behaviors=["view", "rate", "rate"],
                values=[None, 2.0, 5.0],
                times=[0, 0, 2 * HOUR],
            ),
            make(
                [4.0, -1.0],
                user_id="7",
                behaviors=["view", "view"],
                values=[None, None],
                times=[0, 40 * DAY],
            ),
            make([0.5], method="random", units="share", values=[5.0]),
        ]
    )


def rows(means):
    return [tuple(row.values()) for row in means.to_pylist()]


def test_by_recency_counts_from_the_end(table):
    assert rows(by_recency(table)) == [
        ("integrated_gradients", "1", 2, 2.0, 1.0),
        ("integrated_gradients", "2", 2, 3.0, 1.0),
        ("integrated_gradients", "3", 1, 1.0, 1.0),
        ("random", "1", 1, 0.5, 0.5),
    ]


def test_by_behavior(table):
    assert rows(by_behavior(table)) == [
        ("integrated_gradients", "rate", 2, 2.5, 0.5),
        ("integrated_gradients", "view", 3, 2.0, 4 / 3),
        ("random", "rate", 1, 0.5, 0.5),
    ]


def test_by_value_leaves_out_events_without_one(table):
    assert rows(by_value(table)) == [
        ("integrated_gradients", "rate 2", 1, 2.0, -2.0),
        ("integrated_gradients", "rate 5", 1, 3.0, 3.0),
        ("random", "rate 5", 1, 0.5, 0.5),
    ]


def test_by_gap(table):
    assert rows(by_gap(table))[:4] == [
        ("integrated_gradients", "first event", 2, 2.5, 2.5),
        ("integrated_gradients", "same moment", 1, 2.0, -2.0),
        ("integrated_gradients", "under a day", 1, 3.0, 3.0),
        ("integrated_gradients", "a month or more", 1, 1.0, -1.0),
    ]


def test_many_values_become_ranges_that_cover_every_event(make):
    values = [float(v) for v in range(100)]
    means = by_value(to_arrow([make([1.0] * 100, values=values)]))
    assert means["group"].to_pylist()[0] == "rate 0 to 19"
    assert means["events"].to_pylist() == [20] * 5


def test_long_histories_are_grouped_by_recency(make):
    means = by_recency(to_arrow([make([1.0] * 300)]))
    assert means["group"].to_pylist()[4:7] == ["5", "6 to 10", "11 to 20"]
    assert means["group"].to_pylist()[-1] == "over 200"
    assert sum(means["events"].to_pylist()) == 300


def test_an_empty_table_has_no_groups():
    for view in (by_recency, by_behavior, by_gap, by_value):
        assert len(view(to_arrow([]))) == 0


def test_recency_needs_whole_explanations(table):
    with pytest.raises(DataError, match="player"):
        by_recency(table.slice(1))
