"""Conversions credited to channels, from tables with known scores."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llm_influence import cli
from llm_influence.analysis.attribution_rules import ChannelPaths, shares_of
from llm_influence.analysis.channels import analyze_channels, join_outcomes
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import ESTIMATORS, ChannelOptions
from llm_influence.errors import DataError, SchemaError
from llm_influence.influence.table_files import read_tables
from tests.analysis.synthetic import influences, write

WORTH = {"purchase": 0.8, "click": 0.2, "dismiss": -0.1}


def known_score(behavior, _back, _random):
    return WORTH[behavior]


def with_outcomes(folder, records, columns=None):
    """The tables with every third history converting."""
    write(folder, records)
    count = len(records)
    table = {
        "user_id": [record.user_id for record in records],
        "before": [len(record.events) for record in records],
        "label": [float(number % 3 == 0) for number in range(count)],
    }
    pq.write_table(pa.table(table | (columns or {})), folder / "outcomes.parquet")
    return folder


@pytest.fixture(scope="module")
def records():
    return influences(known_score, users=60, length=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    return with_outcomes(tmp_path_factory.mktemp("t"), records)


def analysed(folder, **options):
    with InfluenceView(folder) as view:
        return analyze_channels(view, ChannelOptions(**{"channel": "behavior", **options}))


def column(found, estimator, name="share"):
    rows = found.tables["shares"].records
    return {row["channel"]: row[name] for row in rows if row["estimator"] == estimator}


def test_the_models_effect_is_the_lost_part_of_the_probability_of_conversions(folder, records):
    found = analysed(folder)
    lost = {name: [] for name in WORTH}
    for number, record in enumerate(records):
        if number % 3:
            continue
        for name, worth in WORTH.items():
            gone = worth * sum(event.behavior == name for event in record.events)
            full = 1 / (1 + np.exp(-record.full_value))
            lost[name].append(1 - 1 / (1 + np.exp(gone - record.full_value)) / full)
    effect, share = column(found, "model", "effect"), column(found, "model")
    means = {name: np.mean(values) for name, values in lost.items()}
    assert effect == pytest.approx(means)
    whole = sum(abs(value) for value in means.values())
    assert share == pytest.approx({name: value / whole for name, value in means.items()})
    assert share["purchase"] > share["click"] > 0 > share["dismiss"]


def test_rules_of_the_same_conversions_are_counted_from_the_histories(folder, records):
    found = analysed(folder)
    converted = records[::3]
    for rule, place in (("last_touch", -1), ("first_touch", 0)):
        names = [record.events[place].behavior for record in converted]
        wanted = {name: names.count(name) / len(names) for name in WORTH}
        assert column(found, rule, "effect") == pytest.approx(wanted)
    events = [event.behavior for record in converted for event in record.events]
    wanted = {name: events.count(name) / len(events) for name in WORTH}
    assert column(found, "linear") == pytest.approx(wanted)  # all histories are equally long


def test_every_estimator_has_shares_with_intervals_around_them(folder):
    found = analysed(folder)
    rows = found.tables["shares"].records
    assert {row["estimator"] for row in rows} == set(ESTIMATORS)
    for estimator in ESTIMATORS:
        assert sum(abs(v) for v in column(found, estimator).values()) == pytest.approx(1)
    for row in rows:
        assert row["low"] <= row["share"] <= row["high"], row
        assert row["effect_low"] < row["effect_high"], row
    assert found.facts["conversions"] == 20
    assert [row["estimator"] for row in found.tables["distances"].records] == list(ESTIMATORS[1:])


def test_the_interval_is_as_wide_as_the_spread_of_shares_over_users(folder, records):
    """Last touch has a closed form: a share's standard error over users."""
    found = analysed(folder, resamples=2000)
    last = np.array([record.events[-1].behavior == "purchase" for record in records[::3]])
    wide = column(found, "last_touch", "high")["purchase"]
    wide -= column(found, "last_touch", "low")["purchase"]
    assert wide == pytest.approx(2 * 1.96 * last.std() / np.sqrt(len(last)), rel=0.15)


def test_the_same_tables_give_the_same_shares_however_they_are_read(folder, monkeypatch):
    whole = analysed(folder)
    with InfluenceView(folder) as view:
        read = view.batches
        monkeypatch.setattr(view, "batches", lambda query: read(query, size=7))
        small = analyze_channels(view, ChannelOptions("behavior"))
    for row, other in zip(
        whole.tables["shares"].records, small.tables["shares"].records, strict=True
    ):
        assert row == pytest.approx(other)


def test_touches_and_channels_of_items(folder, records):
    found = analysed(folder, channel="item:genre", touches=("click", "purchase"))
    genre = {f"i{n}": ("drama", "comedy", "war")[n % 3] for n in range(9)}
    kept = [
        [genre[e.item] for e in record.events if e.behavior != "dismiss"] for record in records[::3]
    ]
    last = [names[-1] for names in kept if names]
    effect = column(found, "last_touch", "effect")
    assert effect == pytest.approx(
        {name: last.count(name) / len(kept) for name in set(genre.values())}
    )


def test_rare_channels_are_one_and_keep_their_touches(folder, monkeypatch):
    monkeypatch.setattr("llm_influence.analysis.attribution_rules.MOST_CHANNELS", 4)
    found = analysed(folder, channel="item_id")
    names = [row["channel"] for row in found.tables["channels"].records]
    assert len(names) == 4
    assert names[-1] == "(others)"
    assert sum(row["touches"] for row in found.tables["channels"].records) == 360


def test_a_behaviour_can_be_the_conversion_and_a_user_can_have_many_questions(
    tmp_path, tmp_path_factory, records
):
    came = ["buy" if number % 2 else "leave" for number in range(len(records))]
    users = [f"u{number // 2}" for number in range(len(records))]
    longer = [
        replace(r, user_id=user, events=r.events[n % 2 :], values=r.values[n % 2 :])
        for n, (r, user) in enumerate(zip(records, users, strict=True))
    ]
    columns = {"user_id": users, "before": [len(r.events) for r in longer], "behavior": came}
    folder = with_outcomes(tmp_path, longer, columns)
    found = analysed(folder, conversion="buy")
    assert (found.facts["conversions"], found.facts["explanations"]) == (30, 60)
    with pytest.raises(DataError, match="did you mean 'buy'"):
        analysed(folder, conversion="bui")
    table = pq.read_table(folder / "outcomes.parquet").drop_columns("before")
    other = tmp_path_factory.mktemp("one") / "one.parquet"
    pq.write_table(table.slice(1, 1), other)
    with pytest.raises(DataError, match="2 explanations of user 'u"):
        analysed(folder, outcomes=other)


def test_older_events_that_did_not_fit_count_as_before_the_question(tmp_path, records):
    cut = [replace(r, quality=replace(r.quality, left_out=3)) for r in records]
    folder = with_outcomes(tmp_path, cut, {"before": [len(r.events) + 3 for r in cut]})
    assert analysed(folder, estimators=("linear",)).facts["explanations"] == 60


def outcomes(folder, **columns):
    users = [f"u{n}" for n in range(60)]
    table = {"user_id": users, "label": [1.0, 0.0] * 30, **columns}
    path = folder / "other.parquet"
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path


def test_bad_outcomes_are_refused(folder, tmp_path):
    for columns, kind, message in (
        ({"label": [0.0] * 60}, DataError, "none of 60 explained histories ended"),
        ({"label": [1.0] * 60}, DataError, "--estimator model --estimator last_touch"),
        ({"label": None}, SchemaError, "'label' is missing"),
        ({"user_id": None}, SchemaError, "'user_id' is missing"),
        ({"label": ["no"] * 60}, SchemaError, "'label' has string"),
        ({"user_id": ["u1"] * 60}, DataError, "two rows of the same user_id"),
        ({"before": [99] * 60}, DataError, "no explanation has an outcome"),
    ):
        with pytest.raises(kind, match=message):
            analysed(folder, outcomes=outcomes(tmp_path, **columns))
    some = outcomes(tmp_path, label=[1.0, 0.0, float("nan"), None] * 15)
    facts = analysed(folder, outcomes=some).facts
    assert [facts[k] for k in ("conversions", "explanations", "without_outcome")] == [15, 30, 30]
    only = analysed(
        folder, outcomes=outcomes(tmp_path, label=[1.0] * 60), estimators=("model", "last_touch")
    )
    assert only.facts["conversions"] == 60


def test_what_cannot_be_credited_to_channels_is_refused(folder, tmp_path, records):
    with pytest.raises(DataError, match="one channel, 'leave_one_out'"):
        analysed(folder, channel="method")
    with pytest.raises(DataError, match="did you mean 'behavior'"):
        analysed(folder, channel="behaviour")
    with pytest.raises(DataError, match="unknown behaviour 'see'"):
        analysed(folder, touches=("see",))
    with pytest.raises(DataError, match="unknown estimator 'markow'"):
        analysed(folder, estimators=("markow",))
    write(tmp_path, records)
    with pytest.raises(DataError, match="no files outcomes"):
        analysed(tmp_path)


def test_scores_that_are_no_log_odds_are_no_removal_effects(tmp_path, records):
    shares = [replace(record, prediction=float("nan")) for record in records]
    folder = with_outcomes(tmp_path, shares)
    with pytest.raises(DataError, match="no influence on log-odds"):
        analysed(folder)
    assert analysed(folder, estimators=("linear", "markov")).facts["conversions"] == 20


def test_outcomes_beside_tables_are_no_influence_table(folder):
    assert read_tables(folder).num_rows == 360


def test_shares_keep_signs_and_are_nothing_without_credit():
    found = shares_of(np.array([[3.0, -1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.75, -0.25], [np.nan, np.nan]])


def test_paths_give_every_touch_once(folder, records):
    with InfluenceView(folder) as view:
        join_outcomes(view, folder / "outcomes.parquet")
        pieces = list(ChannelPaths(view, "behavior"))
    assert sum(len(piece.paths) for piece in pieces) == 60
    scores = np.concatenate([piece.scores for piece in pieces]).sum()
    assert scores == pytest.approx(sum(record.values.sum() for record in records))


def test_the_command_writes_files_and_prints_shares(folder, tmp_path):
    words = ["analyze", "channels", folder, "--out", tmp_path, "--channel", "behavior"]
    words += ["--half-life", 1, "--threads", 1]
    result = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    assert "20 conversions of 60 explained histories" in result.output
    tree = json.loads((tmp_path / "channels.json").read_text(encoding="utf-8"))
    assert len(tree["tables"]["shares"]) == 3 * len(ESTIMATORS)
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"channels_{t}.csv" for t in ("shares", "channels", "distances")} <= names
    assert {"channels_shares.png", "channels_shares.svg"} <= names
