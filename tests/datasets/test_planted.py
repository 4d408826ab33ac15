"""Generated logs with known truth: the process, the options, the files."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llm_influence import cli
from llm_influence.config.data import PlantedConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.planted import DISTRACTOR, WITHIN_SESSION, make_planted
from llm_influence.errors import ConfigError

SMALL = {"users": 40, "items": 12, "clusters": 3, "min_events": 5, "max_events": 9}


def made(**options):
    return make_planted(PlantedConfig(**{**SMALL, **options}))


def test_the_same_configuration_makes_the_same_and_another_seed_another():
    (log, truth), (again, same), (other, _) = made(), made(), made(seed=1)
    assert log.to_table().equals(again.to_table())
    assert truth.to_table().equals(same.to_table())
    assert not log.to_table().equals(other.to_table())


def test_other_users_follow_the_same_process():
    options = {"rank": 2, "spread": 0.4}
    (log, truth), (other_log, other) = made(**options), made(**options, user_seed=1)
    np.testing.assert_array_equal(truth.process.factors, other.process.factors)
    assert not log.to_table().equals(other_log.to_table())
    _, third = made(**options, seed=1)
    assert not np.allclose(truth.process.factors, third.process.factors)


@pytest.mark.parametrize("target", ["contrast", "item"])
def test_the_truth_is_what_the_process_says_with_the_event_removed(target):
    log, truth = made(target=target, pair_strength=0.5, rank=2, spread=0.3)
    for user in range(10):
        history = truth.history(user)
        assert len(history) == log.lengths[user] - 1
        item, other = truth.targets[user], None if truth.others is None else truth.others[user]
        assert item == truth.process.log_probabilities(history).argmax()
        for place in range(len(history) - 1):  # without the last event all ages change
            kept = np.arange(len(history)) != place
            removed = truth.process.log_probabilities(history.keep(kept))
            whole = truth.process.log_probabilities(history)

            def value(logs, item=item, other=other):
                if other is not None:
                    return logs[item] - logs[other]
                return logs[item] - np.log1p(-np.exp(logs[item]))

            assert truth.influence[user][place] == pytest.approx(value(whole) - value(removed))


def test_a_drop_of_the_last_event_moves_no_age_by_more_than_a_minute():
    log, truth = made()
    for user in range(len(log)):
        times = truth.history(user).timestamps
        assert WITHIN_SESSION[0] <= times[-1] - times[-2] <= WITHIN_SESSION[1]


def test_the_next_item_follows_the_process():
    log, truth = made(users=3000, temperature=0.5)
    logs = np.stack([truth.process.log_probabilities(truth.history(user)) for user in range(3000)])
    entropy = -(np.exp(logs) * logs).sum(axis=1)
    came = log.items[log.offsets[1:] - 1]
    surprise = -logs[np.arange(3000), came]
    error = (surprise - entropy).std() / np.sqrt(3000)
    assert abs((surprise - entropy).mean()) < 4 * error
    assert entropy.mean() < np.log(12) - 0.2  # far from an even draw


def test_a_drift_changes_the_items_drawn_from_its_date_on_and_is_written_down(tmp_path):
    weights = {"purchase": -1.0, "click": 0.5, "dismiss": 2.0}
    config = PlantedConfig(**SMALL, drift={"date": "2025-07-01", "behaviors": weights})
    drifted, truth = make_planted(config, folder=tmp_path)
    log, _ = made()
    begins = truth.process.drift.date
    assert begins == 1_751_328_000
    np.testing.assert_array_equal(drifted.timestamps, log.timestamps)
    # What is drawn after an event is drawn by the process in force at that event.
    last = np.repeat(log.timestamps[log.offsets[1:] - 1], log.lengths)
    np.testing.assert_array_equal(drifted.items[last < begins], log.items[last < begins])
    assert (drifted.items[log.timestamps >= begins] != log.items[log.timestamps >= begins]).any()
    process = json.loads((tmp_path / "process.json").read_text(encoding="utf-8"))
    assert process["drift"] == {"date": "2025-07-01", "behaviors": weights}
    make_planted(PlantedConfig(**SMALL), folder=tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "process.json").read_text(encoding="utf-8"))
    assert plain["drift"] is None
    with pytest.raises(ConfigError, match="of the names"):
        PlantedConfig.load(None, ["--drift.date", "2025-07-01", "--drift.behaviors", "{buy: 1}"])


def test_distractors_have_no_influence_and_are_no_causes():
    log, truth = made(users=200, distractor_share=0.4, distractor_items=3)
    idle = truth.process.behaviors.index(DISTRACTOR)
    assert (log.behaviors == idle).mean() == pytest.approx(0.4, abs=0.05)
    plain = np.flatnonzero(log.catalogue.table["cluster"].to_numpy() < 0)
    assert len(plain) == 3
    for user in range(200):
        history = truth.history(user)
        nothing = (history.behaviors == idle) | np.isin(history.items, plain)
        np.testing.assert_array_equal(truth.influence[user][nothing], 0)
        assert not truth.is_cause[user][nothing].any()
    without, _ = made(distractor_share=0.0)
    assert DISTRACTOR not in without.code_names.behaviors


def test_causes_are_the_events_with_a_share_of_the_largest_influence():
    for share in (0.05, 0.5):
        _, truth = made(cause_share=share)
        for influence, cause in zip(truth.influence, truth.is_cause, strict=True):
            size = np.abs(influence)
            np.testing.assert_array_equal(cause, (size > 0) & (size >= share * size.max()))


@pytest.mark.parametrize(
    ("harder", "easier"),
    [({"temperature": 2.0}, {"temperature": 0.5}), ({"half_life": 600}, {"half_life": 86_400})],
)
def test_difficulty_options_make_the_process_harder_to_see(harder, easier):
    def entropy(**options):
        _, truth = made(users=200, **options)
        logs = [truth.process.log_probabilities(truth.history(user)) for user in range(200)]
        return -np.mean([np.exp(row) @ row for row in logs])

    assert entropy(**harder) > entropy(**easier) + 0.05


def test_the_files_hold_a_log_like_any_other_and_its_truth(tmp_path):
    config = PlantedConfig(**SMALL, distractor_items=2)
    log, truth = make_planted(config, folder=tmp_path)
    read = BehaviorLog.read(tmp_path / "events.parquet", items=tmp_path / "items.parquet")
    assert read.to_table().equals(log.to_table())
    assert read.catalogue.titles == log.catalogue.titles
    table = pq.read_table(tmp_path / "truth.parquet")
    assert table.equals(truth.to_table())
    first = table.slice(0, len(truth.influence[0]))
    assert set(first["user_id"].to_pylist()) == {log.user_ids[0].as_py()}
    assert first["position"].to_pylist() == list(range(len(truth.influence[0])))
    np.testing.assert_array_equal(first["influence"].to_numpy(), truth.influence[0])
    # The process gives the same over the codes of the file, and its file describes it fully.
    for user in (0, 7):
        np.testing.assert_allclose(
            truth.process.log_probabilities(read.at(user)),
            truth.process.log_probabilities(log.at(user)),
        )
    described = json.loads((tmp_path / "process.json").read_text(encoding="utf-8"))
    assert PlantedConfig.model_validate(described["config"]) == config
    assert described["behaviors"] == {**config.behaviors, DISTRACTOR: 0.0}
    np.testing.assert_array_equal(described["factors"], truth.process.factors)


def test_the_command_line_makes_the_same(tmp_path):
    words = ["planted", "--out", str(tmp_path), "--users", "7", "--behaviors", "{buy: 1, hide: -1}"]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert "7 users" in result.output
    log, _ = make_planted(PlantedConfig(users=7, behaviors={"buy": 1, "hide": -1}))
    read = BehaviorLog.read(tmp_path / "events.parquet", items=tmp_path / "items.parquet")
    assert read.to_table().equals(log.to_table())


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("user", "3", "users"),
        ("max_events", "4", "not below min_events"),
        ("items", "3", "at least one item for each of 5 clusters"),
        ("behaviors", "{view: 0}", "weight is not zero"),
        ("behaviors", "{impression: 1}", "another name"),
    ],
)
def test_what_cannot_be_planted_is_refused(option, value, expected):
    with pytest.raises(ConfigError, match=expected):
        PlantedConfig.load(None, [f"--{option}", value])


def test_exposure_changes_what_comes_next_and_neither_process_nor_truth():
    options = {"users": 400, "temperature": 2.0}
    (log, truth), (plain, same) = made(**options, exposure_spread=1.0), made(**options)
    np.testing.assert_array_equal(truth.process.factors, same.process.factors)
    np.testing.assert_array_equal(log.timestamps, plain.timestamps)
    shown = log.catalogue.table["exposure"].to_numpy()
    assert shown.max() == 1
    assert "exposure" not in plain.catalogue.table.column_names
    first = log.offsets[:-1]  # nothing came before: drawn by exposure alone
    counts = np.bincount(log.items[first], minlength=12)
    np.testing.assert_allclose(counts / counts.sum(), shown / shown.sum(), atol=0.06)
    assert made(exposure_spread=0.0)[0].to_table().equals(made()[0].to_table())
    history = truth.history(0)
    alone = [truth.process.log_probabilities(history), same.process.log_probabilities(history)]
    np.testing.assert_array_equal(*alone)
