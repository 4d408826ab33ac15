"""Continual fine-tuning."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from llm_influence.attribution.explainer import Explainer
from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data import holdouts as periods
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split
from llm_influence.errors import (
    ConfigError,
    DataError,
    EmptyLogError,
    OutputError,
    UnknownNameError,
)
from llm_influence.evaluation.evaluate import by_head
from llm_influence.evaluation.metrics import ModelRecommender, evaluate
from llm_influence.modeling.model import InfluenceModel
from llm_influence.run import Run
from llm_influence.training import continual as module
from llm_influence.training.batches import IGNORE, WindowCollator
from llm_influence.training.continual import ReplayWindows, open_newer, update, update_config
from llm_influence.training.finetune import finetune
from tests import tiny
from tests.training.runs import config_in, interrupted, largest_difference, weights

SINCE = 1_600_000
USERS = 24
WHOLE = tiny.events_table(users=USERS)
FRESH = {"item_id": ["new1", "new2"], "title": ["red lamp 98", "blue chair 99"]}


def early(table=WHOLE):
    return table.filter(pc.less(table["timestamp"], SINCE))


def newer_files(folder: Path, table: pa.Table = WHOLE) -> list[str]:
    """The whole log with two new items, each used by a user, and an item table that has them."""
    rows = {
        "user_id": ["u7", "u15"],
        "item_id": FRESH["item_id"],
        "timestamp": [SINCE + 5, SINCE + 6],
        "behavior": ["click", "click"],
        "value": [3.0, 4.0],
    }
    pq.write_table(pa.concat_tables([table, pa.table(rows)]), folder / "newer.parquet")
    items = pa.concat_tables([tiny.items_table(), pa.table(FRESH)])
    pq.write_table(items, folder / "newer_items.parquet")
    return [str(folder / "newer.parquet"), str(folder / "newer_items.parquet")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on what was before the moment."""
    folder = tmp_path_factory.mktemp("old")
    train = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}
    return finetune(config_in(folder, early(), train=train)).folder


def changed(run, out, words=(), table=WHOLE, *, items=True):
    out.parent.mkdir(exist_ok=True, parents=True)
    log, table_of_items = newer_files(out.parent, table)
    return update_config(
        run, out, log=log, items=table_of_items if items else None, overrides=words
    )


def updated(run, out, words=(), **how):
    config = changed(run, out, words, **how)
    return update(run, config, open_newer(config))


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("new") / "run"
    return updated(run, out, ["--train.epochs", "3", "--train.learning_rate", "5e-3"])


def periods_of(run, tmp_path):
    config = changed(run, tmp_path / "run")
    before = Split.load(run / "split", InfluenceModel.from_pretrained(run).catalogue)
    return before, periods.split_periods(before, open_newer(config), None, config.data.split)


# --- what is taught ------------------------------------------------------------------------


def event_ids(log, users, positions):
    """Events by user and place, wherever users have other numbers."""
    return {(log.user_ids[int(u)].as_py(), int(p)) for u, p in zip(users, positions, strict=True)}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_new_events_are_labels_once_and_old_ones_as_in_the_run(run, tmp_path, share):
    before, periods = periods_of(run, tmp_path)
    model, train = InfluenceModel.from_pretrained(run), periods.split.train
    module.prepare(model, periods)
    windows = ReplayWindows(
        train, model.encoder, known=periods.known, trained=periods.trained, share=share, seed=0
    )
    inputs = WindowCollator(train, model.encoder, feedback=FeedbackHeadConfig())(list(windows))
    labels = inputs["labels"]
    assert inputs["feedback_labels"][labels == IGNORE].isnan().all()
    assert not inputs["feedback_labels"].isnan().all()
    taught = []
    for window, row in zip(windows, labels, strict=True):
        places = window.start + np.flatnonzero((row != IGNORE).numpy())
        own = train.items[train.offsets[window.user] + places]
        assert row[row != IGNORE].tolist() == own.tolist()
        taught += [(train.user_ids[window.user].as_py(), int(place)) for place in places]
    known = dict(zip(train.user_ids.to_pylist(), periods.known.tolist(), strict=True))
    everything = event_ids(train, train.rows_of_users(), train.positions())
    new = {(user, place) for user, place in everything if place >= known[user]}
    old = event_ids(before.train, before.train.rows_of_users(), before.train.positions())
    result = [event for event in taught if event in new]
    assert len(new) > 20
    assert sorted(result) == sorted(new)
    assert set(taught) - new <= old
    assert windows.replayed == {0.0: 0, 0.5: windows.new, 1.0: len(windows) - windows.new}[share]
    if share == 1:
        assert set(taught) - new == old
    calls = [before.test, before.validation, periods.split.test, periods.split.validation]
    for rows in calls:
        assert not event_ids(rows.log, rows.users, rows.positions) & set(taught)


def test_questions_of_both_periods_are_on_their_side_and_old_ones_as_they_were(run, tmp_path):
    before, periods = periods_of(run, tmp_path)
    log, split = periods.split.log, periods.split
    for rows in (split.validation, split.test):
        assert (log.timestamps[rows.events] >= periods.since).all()
    assert (log.timestamps[periods.old.events] < periods.since).all()
    assert len(periods.old) == len(before.test)
    for row in range(len(before.test)):
        ours, theirs = periods.old.history(row), before.test.history(row)
        assert ours.user_id == theirs.user_id
        assert ours.item_ids() == theirs.item_ids()
        assert ours.timestamps.tolist() == theirs.timestamps.tolist()


# --- what is measured ----------------------------------------------------------------------


def test_before_is_the_old_run_and_after_the_folder_that_was_written(run, done, tmp_path):
    _, periods = periods_of(run, tmp_path)
    opened = Run.open(done.folder)
    recommender, config = ModelRecommender(opened.model), opened.config.evaluation
    of_items = evaluate(recommender, periods.old, config)[0]
    assert {name: done.old["after"][name] for name in of_items} == pytest.approx(of_items)
    of_items = evaluate(recommender, opened.split.test, config)[0]
    assert {name: done.new["after"][name] for name in of_items} == pytest.approx(of_items)
    old = InfluenceModel.from_pretrained(run)
    module.prepare(old, periods)
    of_items = evaluate(ModelRecommender(old), periods.old, config)[0]
    assert {name: done.old["before"][name] for name in of_items} == pytest.approx(of_items)
    assert done.new["after"] != done.new["before"]
    written = json.loads((done.folder / "metrics.json").read_text(encoding="utf-8"))
    assert written["test"] == by_head(done.new["after"])
    assert written["update"]["new_period"]["after"] == done.new["after"]
    assert written["update"]["old_period"]["before"] == done.old["before"]
    assert written["update"]["new_items"] == 2
    assert "ndcg@10" in done.to_text()


def test_the_result_is_a_run_folder_that_knows_the_new_items_and_explains(done):
    opened = Run.open(done.folder)
    assert opened.model.catalogue.title_of("new1") == "red lamp 98"
    counts = np.bincount(opened.split.train.items, minlength=len(opened.model.catalogue))
    assert opened.model.encoder.vocabulary.counts.tolist() == counts.tolist()
    history = opened.split.log["u7"]
    assert "new1" in history.item_ids()
    influence = Explainer(opened.model, method="leave_one_out").explain(history)
    assert np.isfinite(influence.values).all()


def test_an_update_can_be_updated_again(done, tmp_path):
    later = tiny.events_table(users=USERS, seed=5)
    moved = pc.add(later["timestamp"], 2_000_000)
    later = later.set_column(2, "timestamp", moved)
    result = updated(done.folder, tmp_path / "run", ["--train.epochs", "1"], table=later)
    assert result.folder != done.folder
    assert len(Run.open(result.folder).model.catalogue) == 32


@pytest.mark.slow
def test_an_interrupted_update_resumes_to_the_same_weights(run, tmp_path):
    words = ["--train.epochs", "2"]
    unbroken = updated(run, tmp_path / "a" / "run", words)

    config = changed(run, tmp_path / "b" / "run", words)
    with interrupted(module):
        update(run, config, open_newer(config))
    with pytest.raises(OutputError, match="holds a run already"):
        update(run, config, open_newer(config))
    resumed = update(run, config, open_newer(config), resume=True)
    assert largest_difference(weights(unbroken.folder), weights(resumed.folder)) < 1e-6
    assert resumed.old["before"] == unbroken.old["before"]
    assert resumed.new == unbroken.new


def test_a_runs_own_log_is_cut_by_time(tmp_path):
    split = {"kind": "global_time", "validation_from": 0.4, "test_from": 0.5}
    folder = finetune(config_in(tmp_path, WHOLE, data={"split": split})).folder
    log = Run.open(folder).split.log
    cut = int(np.quantile(log.timestamps, 0.5, method="lower"))
    words = ["--update.since", "0.5", "--data.split.validation_from", "0.7"]
    words += ["--data.split.test_from", "0.8"]
    result = update(folder, update_config(folder, tmp_path / "new", overrides=words))
    written = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    opened = Run.open(result.folder)
    for rows in (opened.split.validation, opened.split.test):
        assert (opened.split.log.timestamps[rows.events] > cut).all()
    # the run's test examples are new, so the old period has those of its validation
    assert written["update"]["old_period"]["rows"] == len(Run.open(folder).split.validation)


# --- what is refused -----------------------------------------------------------------------


def last_event(**fields):
    """The whole log and one more event, with something strange in it."""
    row = {
        "user_id": "u7",
        "item_id": "i1",
        "timestamp": SINCE + 7,
        "behavior": "click",
        "value": 3.0,
    }
    return pa.concat_tables([WHOLE, pa.Table.from_pylist([row | fields])])


@pytest.mark.parametrize(
    ("table", "words", "error", "message"),
    [
        (last_event(behavior="swipe"), [], UnknownNameError, r"unknown behaviour 'swipe'"),
        (last_event(value=4.5), [], DataError, r"value 4.5 does not occur.*1, 2, 3, 4, 5"),
        (WHOLE, ["--update.since", "0.2"], DataError, r"trained on \d+ events from 1970"),
        (WHOLE, ["--update.since", "soon"], ConfigError, r"update.since is 'soon'"),
        (early(), [], EmptyLogError, r"the new period .*has no training event"),
        (WHOLE, ["--model.dropout", "0.5"], ConfigError, r"an option of model is changed"),
        (WHOLE, ["--update.replay", "1"], ConfigError, r"update.replay is 1"),
    ],
)
def test_what_the_run_cannot_read_or_has_seen_is_refused(
    run, tmp_path, table, words, error, message
):
    with pytest.raises(error, match=rf"(?s){message}"):
        updated(run, tmp_path / "run", words, table=table)


def test_new_items_without_a_text_are_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"2 items are new and have no text, 'new1'.*--items"):
        updated(run, tmp_path / "run", items=False)


def test_without_a_newer_log_there_must_be_a_moment(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--log FILE, or --update.since"):
        update(run, update_config(run, tmp_path / "run"))


def test_features_of_users_come_from_the_newer_log_and_stay_where_it_lacks_them():
    def log(users, features):
        table = pa.table(
            {"user_id": users, "item_id": ["a"] * len(users), "timestamp": [1] * len(users)}
        )
        return BehaviorLog.read(table, users=pa.table({"user_id": users, **features}))

    both = periods._users(
        log(["x", "y"], {"age": ["1", "2"]}), log(["y", "z"], {"age": ["3", "4"]})
    )
    assert dict(zip(both["user_id"].to_pylist(), both["age"].to_pylist(), strict=True)) == {
        "x": "1",
        "y": "3",
        "z": "4",
    }
