"""Generated accounts: the labels follow the rule, and no single event reveals them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm_influence.config.data import DataConfig, PlantedFraudConfig
from llm_influence.datasets.fraud import ALARM, make_fraud
from llm_influence.datasets.public import open_data
from llm_influence.errors import ConfigError
from tests.data.helpers import events

CONFIG = PlantedFraudConfig(accounts=150, seed=3)
NEEDED = {"device": 1, "test": 2, "password": 1}


@pytest.fixture(scope="module")
def planted():
    return make_fraud(CONFIG)


def kind(event):
    """The rule, written a second time."""
    if event.behavior == "login" and event.item == "device_new":
        return "device"
    if event.behavior == "payment" and event.item == "shop_online" and event.value <= 2:
        return "test"
    return "password" if event.behavior == "password_change" else None


def recent(history, moment):
    """Kinds of the risky events of the last 48 hours, by position."""
    return {
        place: kind(event)
        for place, event in enumerate(history.events())
        if kind(event) and moment - event.timestamp <= 48 * 3600
    }


def test_labels_and_causes_follow_the_rule(planted):
    log, truth = planted
    seen = set()
    for event, fraud in zip(truth.alarms, truth.is_fraud, strict=True):
        history, moment = truth.before(event)
        risky = recent(history, moment)
        lawful = all(list(risky.values()).count(name) >= n for name, n in NEEDED.items())
        assert lawful == fraud == log.labels[event]
        causes = set(np.flatnonzero(truth.causes(history, moment)))
        assert causes == (set(risky) if fraud else set())
        seen.add((bool(fraud), len(risky)))
    assert seen == {(True, 4), (False, 3), (False, 0)}  # takeovers, near misses, quiet alarms


def test_only_alarms_have_labels_and_both_sorts_occur(planted):
    log, truth = planted
    names = np.array(log.code_names.behaviors)[log.behaviors]
    assert set(names[~np.isnan(log.labels)]) == {ALARM}
    assert (names == ALARM).sum() == len(truth.alarms)
    assert 0.3 < truth.is_fraud.mean() < 0.5


def test_neither_kind_nor_recency_alone_names_the_causes(planted):
    _, truth = planted
    by_recency, elsewhere = [], []
    for event in truth.alarms[truth.is_fraud]:
        history, moment = truth.before(event)
        causes = truth.causes(history, moment)
        by_recency.append(causes[-causes.sum() :].mean())
        kinds = np.array([kind(each) is not None for each in history.events()])
        elsewhere.append(causes[kinds].mean())
    assert 0.3 < np.mean(by_recency) < 0.75
    assert np.mean(elsewhere) < 0.85


def test_the_same_configuration_gives_the_same_and_another_seed_does_not(planted):
    assert events(make_fraud(CONFIG)[0]) == events(planted[0])
    other = make_fraud(CONFIG.model_copy(update={"seed": 4}))[0]
    assert events(other) != events(planted[0])


def test_what_is_written_is_the_log_its_truth_and_that_it_is_made_up(planted, tmp_path):
    log, truth = planted
    make_fraud(CONFIG, folder=tmp_path)
    config = DataConfig(
        source=str(tmp_path / "events.parquet"), items=str(tmp_path / "items.parquet")
    )
    assert events(open_data(config)) == events(log)
    rows = pq.read_table(tmp_path / "truth.parquet").to_pandas()
    assert rows[rows.label == 0].is_cause.sum() == 0
    frauds = rows[rows.label == 1].groupby(["user_id", "alarm"]).is_cause.sum()
    assert set(frauds) == {4}
    assert len(frauds) == truth.is_fraud.sum()
    assert "no bank" in json.loads((tmp_path / "process.json").read_text())["generated"]


def test_the_log_has_a_name_and_takes_no_columns():
    log = open_data(DataConfig(source="planted_fraud"))
    assert len(log) == PlantedFraudConfig().accounts
    with pytest.raises(ConfigError, match="with the data set 'planted_fraud'"):
        open_data(DataConfig(source="planted_fraud", items="items.csv"))


def test_alarms_need_room_for_their_windows():
    with pytest.raises(ValidationError, match="at least 12 days: 4 alarms"):
        PlantedFraudConfig(alarms=4, days=11)
