"""Splits: leave-one-out, global time, several targets, saving and loading."""

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from llm_influence.config.data import SplitConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import PARTS, Split, split_log
from llm_influence.errors import ConfigError, DataError, EmptyLogError, UnknownNameError
from tests.data.helpers import events, table

LOG = BehaviorLog.read(
    table(
        *[("long", f"i{time}", time, "view", time / 2) for time in range(5)],
        *[("short", f"i{time}", time, "buy", None) for time in (7, 9)],
        *[("three", f"i{time}", time, "buy", None) for time in (3, 6, 9)],
    ),
    users=pa.table({"user_id": ["long"], "age": ["30"]}),
)
BY_TIME = SplitConfig(
    kind="global_time",
    validation_from="1970-01-01T00:00:03Z",
    test_from="1970-01-01T00:00:08Z",
    min_events=2,
)


def examples_of(examples):
    """(history, target) item ids of every example, by user."""
    ids = examples.log.catalogue.ids
    return {
        examples.history(n).user_id: (
            examples.history(n).item_ids(),
            ids[int(examples.target_items[n])].as_py(),
        )
        for n in range(len(examples))
    }


def test_leave_one_out():
    split = split_log(LOG, SplitConfig())
    assert examples_of(split.test) == {
        "long": (["i0", "i1", "i2", "i3"], "i4"),
        "three": (["i3", "i6"], "i9"),
    }
    assert examples_of(split.validation) == {
        "long": (["i0", "i1", "i2"], "i3"),
        "three": (["i3"], "i6"),
    }
    assert {one.user_id: one.item_ids() for one in split.train} == {
        "long": ["i0", "i1", "i2"],
        "short": ["i7", "i9"],
        "three": ["i3"],
    }
    assert split.test.target_values[0] == 2.0
    assert split.test.target_behaviors.tolist() == [1, 0]
    assert len(split.test.select([1])) == 1
    assert split.description["test_rows"] == 2


def test_global_time_takes_the_first_event_after_each_cut():
    split = split_log(LOG, BY_TIME)
    assert examples_of(split.validation) == {"long": (["i0", "i1", "i2"], "i3")}
    assert examples_of(split.test) == {"short": (["i7"], "i9"), "three": (["i3", "i6"], "i9")}
    assert [one.user_id for one in split.train] == ["long"]
    parts = [PARTS[part] for part in split.parts()]
    assert parts == ["train"] * 3 + ["validation", "rest"] + ["rest", "test"] + ["rest"] * 2 + [
        "test"
    ]
    assert "1970-01-01T00:00:08Z" in split.description["rule"]


def test_quantile_cuts():
    split = split_log(LOG, SplitConfig(kind="global_time", validation_from=0.5, test_from=0.8))
    assert split.train.timestamps.max() < np.quantile(LOG.timestamps, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_from": 0.0}, "validation_from is 0.0"),
        ({"test_from": "soon"}, "test_from is 'soon'"),
        ({"test_from": "2020-01-01T00:00:00"}, "an ISO time with a zone"),
        ({"validation_from": 0.9, "test_from": 0.5}, "is not before test_from"),
    ],
)
def test_wrong_cuts_are_refused(change, message):
    config = SplitConfig(**{"kind": "global_time", "validation_from": 0.1} | change)
    with pytest.raises(ConfigError, match=message):
        split_log(LOG, config)


def test_a_log_without_test_users_is_refused():
    log = BehaviorLog.read(table(("a", "x", 1), ("b", "x", 1), ("b", "y", 2)))
    with pytest.raises(EmptyLogError, match="no user can be tested: 2 users have 3 events"):
        split_log(log, SplitConfig())


CONFIGS = st.one_of(
    st.builds(SplitConfig, min_events=st.integers(2, 4)),
    st.builds(SplitConfig, min_events=st.integers(4, 6), held_out=st.just(2)),
    st.builds(
        SplitConfig,
        kind=st.just("global_time"),
        validation_from=st.floats(0.05, 0.5),
        test_from=st.floats(0.55, 0.95),
        min_events=st.integers(2, 4),
        examples=st.sampled_from(["first", "all"]),
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.integers(0, 50)),
        min_size=5,
        max_size=60,
        unique=True,
    ),
    CONFIGS,
)
def test_parts_cover_every_event_once(rows, config):
    log = BehaviorLog.read(table(*rows))
    try:
        split = split_log(log, config)
    except (EmptyLogError, ConfigError):
        return
    parts = split.parts()
    counts = np.bincount(parts, minlength=4)
    assert counts[0] == split.train.num_events
    assert counts[1:3].tolist() == [len(split.validation), len(split.test)]
    if config.kind == "leave_one_out" and config.min_events > 2 * config.held_out:
        assert counts[3] == 0
    several = config.held_out > 1 or config.examples == "all"
    for examples in (split.validation, split.test):
        assert several or len(np.unique(examples.users)) == len(examples)
        assert (examples.positions >= 1).all()
        trained = np.isin(examples.events, np.flatnonzero(parts == 0))
        assert not trained.any()


def places_of(rows):
    """(user, position) of every target."""
    return list(
        zip(
            rows.log.user_ids.take(pa.array(rows.users)).to_pylist(),
            rows.positions.tolist(),
            strict=True,
        )
    )


def test_several_events_of_a_user_are_held_out_each_with_all_before_it_as_history():
    split = split_log(LOG, SplitConfig(held_out=2, min_events=4))
    assert places_of(split.validation) == [("long", 1), ("long", 2)]
    assert places_of(split.test) == [("long", 3), ("long", 4)]
    assert split.train["long"].item_ids() == ["i0"]
    assert len(split.train["short"]) == 2  # too few events: they only train
    assert split.test.history(1).item_ids() == ["i0", "i1", "i2", "i3"]
    assert "last 2 events" in split.description["rule"]


def test_every_event_after_a_cut_can_be_an_example():
    split = split_log(LOG, BY_TIME.model_copy(update={"examples": "all"}))
    assert places_of(split.validation) == [("long", 3), ("long", 4), ("three", 1)]
    assert places_of(split.test) == [("short", 1), ("three", 2)]
    one = split_log(LOG, BY_TIME)
    assert places_of(one.validation) == [("long", 3)]
    assert one.train.num_events == split.train.num_events


def test_the_query_time_is_the_time_of_the_target():
    rows = split_log(LOG, SplitConfig()).test
    assert [rows.history(n).query_time for n in range(len(rows))] == [4, 9]
    assert LOG["long"].query_time is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 3, "min_events": 5}, "min_events of at least 6"),
        ({"kind": "global_time", "held_out": 2}, "no held_out"),
        ({"examples": "all"}, "no examples"),
    ],
)
def test_options_that_do_not_fit_the_kind_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        SplitConfig(**options)


@pytest.mark.parametrize("config", [SplitConfig(), BY_TIME])
def test_save_and_load(tmp_path, config):
    split = split_log(LOG, config)
    split.save(tmp_path)
    back = Split.load(tmp_path, catalogue=LOG.catalogue)
    assert events(back.log) == events(LOG)
    assert events(back.train) == events(split.train)
    assert (examples_of(back.validation), examples_of(back.test)) == (
        examples_of(split.validation),
        examples_of(split.test),
    )
    assert back.description == split.description
    assert dict(back.log["long"].user) == {"age": "30"}
    assert examples_of(Split.load(tmp_path).test) == examples_of(split.test)


def test_loading_keeps_the_order_as_written(tmp_path):
    rows = [("b", "x", 1), ("b", "z", 1), ("b", "y", 1), ("a", "x", 1)]
    log = BehaviorLog.from_arrays(
        user_ids=["b", "a"],
        offsets=[0, 3, 4],
        items=[0, 2, 1, 0],
        timestamps=[1, 1, 1, 1],
        catalogue=Catalogue.from_ids(pa.array(["x", "y", "z"])),
    )
    split_log(log, SplitConfig()).save(tmp_path)
    assert [row[:3] for row in events(Split.load(tmp_path).log)] == rows


def test_damaged_splits_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Split.load(tmp_path)
    split_log(LOG, SplitConfig()).save(tmp_path)
    with pytest.raises(UnknownNameError, match="item 'i"):
        Split.load(tmp_path, catalogue=Catalogue.from_ids(pa.array(["other"])))
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(DataError, match=r"split.json: not the file of a saved split"):
        Split.load(tmp_path)


def test_only_events_of_the_named_behaviours_are_targets():
    log = BehaviorLog.from_arrays(
        user_ids=["a"],
        offsets=[0, 6],
        items=[0] * 6,
        timestamps=[1, 2, 3, 4, 5, 6],
        behaviors=[0, 1, 0, 1, 0, 1],
        behavior_names=("buy", "mail"),
        catalogue=Catalogue.from_ids(["x"]),
    )
    cuts = {"validation_from": "1970-01-01T00:00:03Z", "test_from": "1970-01-01T00:00:05Z"}
    config = SplitConfig(kind="global_time", examples="all", behaviors=["mail"], **cuts)
    split = split_log(log, config)
    assert split.validation.positions.tolist() == [3]
    assert split.test.positions.tolist() == [5]
    assert len(split.test.history(0).items) == 5  # other behaviours stay in the history
    with pytest.raises(UnknownNameError, match=r"'male'.*did you mean 'mail'"):
        split_log(log, SplitConfig(behaviors=["male"]))
