"""Dynamics of tables with known scores, before and after, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.analysis.planted_tables import write_truth
from llm_influence import cli
from llm_influence.analysis.dynamics import analyze_dynamics
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import DynamicsOptions
from llm_influence.config.data import DriftConfig, PlantedConfig
from llm_influence.datasets.planted import make_planted
from llm_influence.errors import ConfigError, DataError
from tests.analysis.synthetic import rescored, timed, write

HOUR = 3_600
WEIGHTS = {"purchase": 1.0, "click": 0.5, "dismiss": -0.5}
HALF_LIVES = {"purchase": 40, "click": 20, "dismiss": 20}
CHANGE = 1_003_104_000
"""A Monday, 2001-10-15. From then on a dismissal counts for nothing."""


def known_score(behavior, age, moment, random):
    """A weight halved with every half-life, and noise."""
    weight = 0.0 if behavior == "dismiss" and moment >= CHANGE else WEIGHTS[behavior]
    return weight * 0.5 ** (age / HOUR / HALF_LIVES[behavior]) + 0.05 * random.normal()


@pytest.fixture(scope="module")
def records():
    return timed(known_score, users=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    return write(tmp_path_factory.mktemp("t"), records)


def rows(analysis, table, **where):
    found = analysis.tables[table].records if table in analysis.tables else []
    return [row for row in found if all(row[name] == value for name, value in where.items())]


def test_half_lives_and_the_date_of_a_change_are_found(folder):
    with InfluenceView(folder) as view:
        found = analyze_dynamics(view, DynamicsOptions(by=("behavior",), window="week"))
    for behavior in ("purchase", "click"):
        (row,) = rows(found, "half_lives", level=behavior)
        assert row["form"] == "exponential"
        assert row["half_life_hours"] == pytest.approx(HALF_LIVES[behavior], rel=0.1)
        assert row["low"] < HALF_LIVES[behavior] < row["high"]
    (change,) = rows(found, "changes", factor="behavior")
    assert change["window"] == "2001-10-15"
    assert change["level"] == "dismiss"
    assert change["low"] < change["change"] < change["high"]
    segments = [row["segment"] for row in rows(found, "drift", level="dismiss")]
    assert segments == sorted(segments)
    assert set(segments) == {0, 1}


@pytest.mark.slow
def test_what_a_new_model_moved_is_found_event_by_event(tmp_path, folder, records):
    def moved(behavior, age, moment, random):
        return known_score(behavior, age, moment, random) + 0.3 * (behavior == "click")

    later = write(tmp_path, rescored(records, moved))
    with InfluenceView(later) as after, InfluenceView(folder) as before:
        options = DynamicsOptions(by=("behavior",))
        found = analyze_dynamics(after, options, before)
    told = found.facts["comparison"]
    assert told["paired_explanations"] == 300
    assert told["paired_events"] == after.events
    assert (told["only_after"], told["only_before"]) == (0, 0)
    changes = {row["level"]: row for row in rows(found, "moved", factor="behavior")}
    assert {row["how"] for row in changes.values()} == {"paired"}
    assert {level for level, row in changes.items() if row["moved"]} == {"click"}
    click = changes["click"]
    assert click["low"] < 0.3 < click["high"]
    assert click["high"] - click["low"] < 0.02
    values = {
        name: np.mean(
            [
                s
                for r in of
                for e, s in zip(r.events, r.values, strict=True)
                if e.behavior == "click"
            ]
        )
        for name, of in (("before", records), ("after", rescored(records, moved)))
    }
    assert click["before"] == pytest.approx(values["before"], abs=1e-6)
    assert click["after"] == pytest.approx(values["after"], abs=1e-6)
    items = rows(found, "moved", factor="item")
    assert len(items) == 9
    assert [row["p_value"] for row in items] == sorted(row["p_value"] for row in items)


def test_what_cannot_be_analysed_is_refused(tmp_path, folder, records):
    one = write(tmp_path / "one", records[:1], shards=1)
    with InfluenceView(one) as view, pytest.raises(DataError, match="explanations of 1 user"):
        analyze_dynamics(view)
    with InfluenceView(folder) as view:
        for options, error, words in (
            (DynamicsOptions(by=("behaviour",)), DataError, "did you mean 'behavior'"),
            (DynamicsOptions(by=("method",)), DataError, "on every row"),
            (DynamicsOptions(by=("behavior",), window="3000"), DataError, "one window"),
            (
                DynamicsOptions(by=("behavior",), match="behavior"),
                ConfigError,
                "which item an event",
            ),
        ):
            with pytest.raises(error, match=words):
                analyze_dynamics(view, options)
    nothing = write(tmp_path / "n", rescored(records[:20], lambda *_: 0.0))
    with InfluenceView(nothing) as view, pytest.raises(DataError, match="every score is zero"):
        analyze_dynamics(view, DynamicsOptions(by=("behavior",)))
    apart = write(tmp_path / "m", [replace(r, target_id="i77") for r in records[:20]])
    with InfluenceView(apart) as view, pytest.raises(DataError, match="no event matches"):
        analyze_dynamics(view, DynamicsOptions(by=("behavior",), match="match:genre"))


def test_the_drift_of_a_planted_log_is_found_from_its_true_influences(tmp_path):
    drift = DriftConfig(date="2025-06-30", behaviors={"purchase": 0.4, "click": 1, "dismiss": -0.5})
    _, truth = make_planted(PlantedConfig(users=300, seed=3, drift=drift))
    write_truth(truth, tmp_path)
    with InfluenceView(tmp_path) as view:
        options = DynamicsOptions(by=("behavior",), window="week", match="match:cluster")
        found = analyze_dynamics(view, options)
    changes = {row["level"]: row["window"] for row in rows(found, "changes", factor="behavior")}
    assert changes == {"purchase": "2025-06-30", "click": "2025-06-30"}


def test_the_command_writes_files_and_prints_what_was_found(tmp_path, folder):
    words = ["analyze", "dynamics", folder, "--out", tmp_path, "--by", "behavior"]
    words += ["--window", "14", "--against", folder, "--threads", 1]
    result = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    assert "exponential" in result.output
    tree = json.loads((tmp_path / "dynamics.json").read_text(encoding="utf-8"))
    assert tree["tables"]["half_lives"][0]["factor"] == "all events"
    names = {path.name for path in tmp_path.iterdir()}
    for table in ("decay", "drift", "moved"):
        assert {f"dynamics_{table}.{kind}" for kind in ("csv", "png", "svg")} <= names
    assert {"dynamics_half_lives.csv", "dynamics_changes.csv"} <= names
