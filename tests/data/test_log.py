"""Behaviour logs: order, ties, duplicates, labels, and the checks of bad input."""

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings

from llm_influence.config.data import SplitConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split, split_log
from llm_influence.errors import (
    DataError,
    DuplicateError,
    EmptyLogError,
    SchemaError,
    TimestampError,
    UnknownNameError,
)
from tests.data.helpers import TWO_USERS, events, table

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "10", "9", "é"]),
        st.sampled_from(["x", "y", "z"]),
        st.integers(-3, 3) | st.integers(0, 2**33),
        st.sampled_from(["view", "cart"]),
        st.none() | st.integers(-5, 5).map(float),
    ),
    min_size=1,
    max_size=40,
)


def sorted_rows(rows):
    """What a log of these rows must hold: Python's stable sort by (user as UTF-8, time)."""
    return sorted(rows, key=lambda row: (row[0].encode(), row[2]))


def test_known_log():
    log = BehaviorLog.read(TWO_USERS)
    assert events(log) == [
        ("a", "x", 10, "view", None),
        ("a", "y", 20, "cart", 2.5),
        ("a", "z", 20, "view", None),
        ("b", "x", 30, "view", None),
        ("b", "z", 30, "view", 1.0),
    ]
    assert len(log) == 2
    assert log.num_events == 5
    assert log.offsets.tolist() == [0, 3, 5]
    assert log.positions().tolist() == [0, 1, 2, 0, 1]
    assert log.code_names.behaviors == ("cart", "view")
    assert log.code_names.items is log.catalogue.ids
    kinds = (log.items.dtype, log.behaviors.dtype, log.timestamps.dtype, log.values.dtype)
    assert kinds == (np.int32, np.int32, np.int64, np.float32)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_a_log_is_its_rows_sorted_with_ties_in_file_order(rows):
    log = BehaviorLog.read(table(*rows), duplicates="keep")
    assert events(log) == sorted_rows(rows)
    again = BehaviorLog.read(log.to_table(), duplicates="keep")
    assert events(again) == events(log)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_file_only_matters_for_ties(rows, random):
    rows = [(user, item, time, *rest) for time, (user, item, _, *rest) in enumerate(rows)]
    shuffled = random.sample(rows, len(rows))
    one, other = BehaviorLog.read(table(*rows)), BehaviorLog.read(table(*shuffled))
    assert events(one) == events(other)
    assert one.catalogue.ids.equals(other.catalogue.ids)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_dropping_duplicates_keeps_the_first_of_each(rows):
    first = list({row[:4]: row for row in reversed(rows)}.values())[::-1]
    first.sort(key=rows.index)
    log = BehaviorLog.read(table(*rows), duplicates="drop")
    assert events(log) == sorted_rows(first)


def test_order_within_a_second_follows_the_fraction():
    rows = [("a", "late", "2020-01-01T10:00:00.9Z"), ("a", "early", "2020-01-01T10:00:00.1Z")]
    log = BehaviorLog.read(table(*rows))
    assert log["a"].item_ids() == ["early", "late"]


def test_times_too_far_apart_for_one_sort_key(monkeypatch):
    rows = [("b", "x", 5), ("a", "y", 7), ("a", "x", 7), ("a", "z", 1)]
    usual = events(BehaviorLog.read(table(*rows)))
    monkeypatch.setattr("llm_influence.data.reading.LARGEST", 1)
    assert events(BehaviorLog.read(table(*rows))) == usual


def test_histories_are_views_that_share_the_code_names():
    log = BehaviorLog.read(TWO_USERS)
    history = log["a"]
    assert np.shares_memory(history.items, log.items)
    assert history.code_names is log.code_names
    assert [len(one) for one in log] == [3, 2]
    assert log.at(0, 2).item_ids() == ["x", "y"]
    assert len(log.at(1, 9)) == 2
    assert [event.value for event in history.events()] == [None, 2.5, None]


def test_users_can_be_tested_and_a_log_is_shown_in_two_lines():
    log = BehaviorLog.read(TWO_USERS)
    assert "a" in log
    assert "c" not in log
    assert repr(log).splitlines() == [
        "BehaviorLog(5 events, 2 users, 3 items, cart, view,",
        "            1970-01-01 00:00:10 to 1970-01-01 00:00:30 UTC)",
    ]
    start, end = "1970-01-01 00:00:10", "1970-01-01 00:00:20"
    assert repr(log["a"]) == f"History(user 'a', 3 events, {start} to {end} UTC)"
    assert repr(log["a"].keep(slice(0))) == "History(user 'a', 0 events, no time)"
    assert repr(log.catalogue) == "Catalogue(3 items, columns item_id)"


def test_one_event_is_a_history():
    log = BehaviorLog.read(table(("a", "x", 1)))
    assert len(log["a"]) == 1
    assert log.code_names.behaviors == ("interact",)


def test_unknown_user():
    log = BehaviorLog.read(table(("user-1", "x", 1)))
    with pytest.raises(UnknownNameError, match=r"'usr-1'.*its 1 users \(did you mean 'user-1'"):
        log["usr-1"]
    with pytest.raises(KeyError):
        log[7]
    for index in (-1, 1):
        with pytest.raises(UnknownNameError, match=f"no user number {index}"):
            log.at(index)


def test_user_features_are_aligned_and_text():
    people = pa.table({"age": [30, 40], "user_id": ["b", "zz"], "plan": [None, "free"]})
    log = BehaviorLog.read(TWO_USERS, users=people)
    assert dict(log["a"].user) == {"age": "", "plan": ""}
    assert dict(log["b"].user) == {"age": "30", "plan": ""}
    assert dict(log.prefix([0, 1]).at(0).user) == {"age": "30", "plan": ""}
    twice = pa.table({"user_id": ["b", "b"]})
    with pytest.raises(DuplicateError, match="user_id 'b' stands in rows 1 and 2"):
        BehaviorLog.read(TWO_USERS, users=twice)


def test_item_table_sets_the_codes():
    items = pa.table({"item_id": ["q", "z", "y", "x"], "title": ["Q", "Z", "Y", "X"]})
    log = BehaviorLog.read(TWO_USERS, items=items)
    assert log["a"].items.tolist() == [3, 2, 1]
    assert log.catalogue.title_of("q") == "Q"


def test_item_absent_from_the_item_table_names_its_first_row():
    items = Catalogue.from_ids(pa.array(["x", "y"]))
    with pytest.raises(UnknownNameError, match=r"row 4, column 'item_id': item 'z' is not in the"):
        BehaviorLog.read(TWO_USERS, items=items)


def test_columns_of_the_file_are_mapped(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,what,when,stars\n01,07,2020-01-01 01:00:00,4\n")
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when", "value": "stars"}
    log = BehaviorLog.read(path, columns=columns, timezone="Europe/Berlin", default_behavior="rate")
    assert events(log) == [("01", "07", 1577836800, "rate", 4.0)]


def test_errors_carry_the_file_and_the_row(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\na,x,2020-01-01\na,y,yesterday\n")
    with pytest.raises(TimestampError, match=r"log.csv, row 2, column 'timestamp': 'yesterday'"):
        BehaviorLog.read(path, timezone="UTC")
    path.write_text("user,item_id,timestamp\na,x,1\n")
    with pytest.raises(SchemaError, match=r"log.csv: column 'user_id' is missing; found 'user'"):
        BehaviorLog.read(path)
    path.write_text("user_id,item_id,timestamp\n,x,1\n")
    with pytest.raises(SchemaError, match=r"log.csv, row 1, column 'user_id': the cell is empty"):
        BehaviorLog.read(path)
    path.write_text("user_id,item_id,timestamp\n")
    with pytest.raises(EmptyLogError, match="the log has no rows"):
        BehaviorLog.read(path)


def test_duplicates_name_both_rows_and_the_count():
    rows = [("b", "y", 9), ("a", "x", 1), ("a", "y", 1), ("a", "x", 1), ("b", "y", 9)]
    with pytest.raises(DuplicateError, match=r"rows 2 and 4 hold.*user a, item x.*2 in all"):
        BehaviorLog.read(table(*rows))
    assert BehaviorLog.read(table(*rows), duplicates="drop").num_events == 3
    assert BehaviorLog.read(table(*rows), duplicates="keep").num_events == 5
    with pytest.raises(DataError, match=r"duplicates is 'ignore'.*'drop', 'error', 'keep'"):
        BehaviorLog.read(table(*rows), duplicates="ignore")


@settings(max_examples=50, deadline=None)
@given(ROWS, st.data())
def test_prefix_keeps_the_first_events_of_every_user(rows, data):
    log = BehaviorLog.read(table(*rows), duplicates="keep")
    lengths = [data.draw(st.integers(0, int(length))) for length in log.lengths]
    part = log.prefix(lengths)
    expected = [history.keep(slice(0, n)) for history, n in zip(log, lengths, strict=True) if n]
    assert [one.user_id for one in part] == [one.user_id for one in expected]
    for one, other in zip(part, expected, strict=True):
        assert one.events() == other.events()


def test_prefix_checks_the_lengths():
    log = BehaviorLog.read(TWO_USERS)
    for wrong in ([3], [4, 1], [-1, 1]):
        with pytest.raises(DataError, match="lengths"):
            log.prefix(wrong)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_align_changes_codes_and_not_events(rows):
    log = BehaviorLog.read(table(*rows), duplicates="keep")
    other = Catalogue.from_ids(pa.array(["new", "z", "y", "x"]))
    moved = log.align(other, ("view", "buy", "cart"))
    assert events(moved) == events(log)
    assert moved.catalogue is other
    back = moved.align(log.catalogue, log.code_names.behaviors)
    np.testing.assert_array_equal(back.items, log.items)


def test_align_names_what_is_unknown():
    log = BehaviorLog.read(TWO_USERS)
    with pytest.raises(UnknownNameError, match="event 2 of user a: item 'y' is not in the cat"):
        log.align(Catalogue.from_ids(pa.array(["x", "z"])), ("view", "cart"))
    with pytest.raises(UnknownNameError, match=r"user a: unknown behaviour 'cart'.*'view'"):
        log.align(log.catalogue, ("view",))


def test_labels_stay_with_their_events_and_out_of_histories(tmp_path):
    """Rows come unsorted; one has no label."""
    columns = {"user_id": ["b", "a", "a", "b", "b"], "item_id": ["x", "x", "y", "y", "y"]}
    rows = pa.table({**columns, "timestamp": [9, 3, 2, 1, 4], "label": [1.0, None, 0.0, 5.0, 7.0]})
    log = BehaviorLog.read(rows)
    np.testing.assert_array_equal(log.labels, [0, np.nan, 5, 7, 1])
    np.testing.assert_array_equal(log.prefix([1, 2]).labels, [0, 5, 7])
    np.testing.assert_array_equal(log.select(["b"]).labels, [5, 7, 1])
    assert np.isnan(log.values).all()
    assert [event.value for event in log["b"].events()] == [None, None, None]
    assert BehaviorLog.read(rows.drop_columns("label")).labels is None
    split = split_log(log, SplitConfig())
    split.save(tmp_path)
    np.testing.assert_array_equal(Split.load(tmp_path).log.labels, log.labels)
    with pytest.raises(DataError, match="length"):
        BehaviorLog.from_arrays(
            user_ids=["a"],
            offsets=[0, 1],
            items=[0],
            timestamps=[1],
            catalogue=log.catalogue,
            labels=[1, 2],
        )


def test_from_arrays_checks_its_arguments():
    items = Catalogue.from_ids(pa.array(["x", "y"]))
    good = {
        "user_ids": ["b", "a"],
        "offsets": [0, 2, 3],
        "items": [0, 1, 0],
        "timestamps": [5, 5, 1],
        "catalogue": items,
    }
    log = BehaviorLog.from_arrays(**good)
    assert events(log)[2] == ("a", "x", 1, "interact", None)
    for change, message in [
        ({"timestamps": [5, 4, 1]}, "decrease"),
        ({"items": [0, 2, 0]}, "item code"),
        ({"behaviors": [0, 0, 1]}, "behaviour code"),
        ({"offsets": [0, 2, 2]}, "offsets"),
        ({"user_ids": ["a", "a"]}, "twice"),
        ({"items": [0, 1]}, "length"),
    ]:
        with pytest.raises(DataError, match=message):
            BehaviorLog.from_arrays(**good | change)
    with pytest.raises(EmptyLogError):
        BehaviorLog.from_arrays(user_ids=[], offsets=[0], items=[], timestamps=[], catalogue=items)
