"""The fairness test: only the changed feature changes recommendations."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.batch.studies import MOST_VALUES, run_fairness_test
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import DataError, ExplanationError
from llm_influence.influence.table_files import read_fairness_test, table_files
from llm_influence.modeling.model import InfluenceModel
from tests import tiny

TEMPLATE = """
name: aged
history: "{user.age}"
event: "{item}"
added: [behavior]
"""


@pytest.fixture(scope="module")
def aged(tmp_path_factory):
    """A model that reads ages, moved away from its start."""
    path = tmp_path_factory.mktemp("t") / "aged.yaml"
    path.write_text(TEMPLATE)
    config = tiny.run_config(rendering={"template": str(path)})
    return tiny.moved(InfluenceModel.build(config, tiny.small_log()), 0.3)


def test_rows_say_what_the_model_recommends_to_the_changed_user(aged, tmp_path):
    log = tiny.small_log()
    result = run_fairness_test(aged, log, ["age"], tmp_path, k=5, batch_size=5, progress=False)
    rows = read_fairness_test(result.path).to_pylist()
    assert len(rows) == len(log) * 2
    assert any(row["changed"] for row in rows)
    for row in rows:
        history = log[row["user_id"]]
        changed = replace(history, user=MappingProxyType({**history.user, "age": row["other"]}))
        own, other = (aged.recommend(one, 5) for one in (history, changed))
        assert history.user["age"] == row["value"] != row["other"]
        assert (own[0].item, other[0].item) == (row["item_id"], row["item_other"])
        assert row["changed"] == (own[0].item != other[0].item)
        both = {each.item for each in own} & {each.item for each in other}
        assert row["kept"] == len(both) / 5
        assert row["log_odds"] == pytest.approx(own[0].log_odds, abs=1e-4)
        (again,) = aged.recommend(changed, 1, candidates=[row["item_id"]])
        assert row["log_odds_other"] == pytest.approx(again.log_odds, abs=1e-4)
    users = {row["user_id"]: False for row in rows}
    for row in rows:
        users[row["user_id"]] |= row["changed"]
    assert result.changed == {"age": pytest.approx(np.mean(list(users.values())))}


def test_a_model_that_does_not_read_the_feature_never_changes(tmp_path):
    result = run_fairness_test(
        tiny.tiny_model(), tiny.small_log(), ["age"], tmp_path, progress=False
    )
    assert result.changed == {"age": 0.0}
    assert {row["kept"] for row in read_fairness_test(result.path).to_pylist()} == {1.0}


def test_of_many_numbers_some_are_put_in_and_users_without_stand_aside(aged, tmp_path):
    ages = [""] + [str(20 + user) for user in range(29)]
    users = pa.table({"user_id": [f"u{i}" for i in range(30)], "age": ages})
    log = BehaviorLog.read(tiny.events_table(30), items=tiny.items_table(), users=users)
    measured = run_fairness_test(aged, log, ["age"], tmp_path, progress=False)
    rows = read_fairness_test(measured.path).to_pylist()
    assert measured.users == {"age": 29}
    assert "u0" not in {row["user_id"] for row in rows}
    assert len({row["other"] for row in rows}) == MOST_VALUES


def test_flips_are_no_influence_table(aged, tmp_path):
    run_fairness_test(aged, tiny.small_log(), ["age"], tmp_path, progress=False)
    with pytest.raises(DataError, match=r"no \.parquet file"):
        table_files(tmp_path)


def test_what_cannot_be_changed_is_refused(aged, tmp_path):
    with pytest.raises(DataError, match="unknown feature 'gender'"):
        run_fairness_test(aged, tiny.small_log(), ["gender"], tmp_path)
    with pytest.raises(ExplanationError, match="k is 99"):
        run_fairness_test(aged, tiny.small_log(), ["age"], tmp_path, k=99)
    same = pa.table({"user_id": [f"u{i}" for i in range(12)], "age": ["20"] * 12})
    log = BehaviorLog.read(tiny.events_table(), items=tiny.items_table(), users=same)
    with pytest.raises(DataError, match="every user's 'age' is '20'"):
        run_fairness_test(aged, log, ["age"], tmp_path)
