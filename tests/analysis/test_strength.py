"""Strength and share of what was chosen: known closed forms, and no way to mix them up."""

from types import SimpleNamespace

import pytest

from llm_influence.analysis.dynamics import analyze_dynamics
from llm_influence.analysis.factors import analyze_factors
from llm_influence.analysis.strength import (
    behavior_strengths,
    shares_of_chosen,
    strengths_of_memory,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import Choice, FactorOptions
from llm_influence.errors import DataError
from llm_influence.modeling.gates import BehaviorGate
from tests.analysis.synthetic import influences, timed, write

HOUR = 3600
TRUTH = {"click": (0.5, 6.0), "purchase": (2.0, 48.0), "dismiss": (-1.0, 24.0)}
"""Weight and half-life in hours."""
DRAWN = ("drawn", "i40, i41")


def decayed(behavior, age, moment, random):
    weight, hours = TRUTH[behavior]
    return weight * 0.5 ** (age / HOUR / hours)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("drawn"), timed(decayed, users=200, target=DRAWN))
    with InfluenceView(folder) as view:
        yield view


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    with InfluenceView(write(tmp_path_factory.mktemp("chosen"), timed(decayed))) as view:
        yield view


def test_exact_decays_give_back_their_weights_and_half_lives(drawn):
    records = behavior_strengths(drawn)
    assert [record["behavior"] for record in records] == ["purchase", "dismiss", "click"]
    for record in records:
        weight, hours = TRUTH[record["behavior"]]
        assert record["strength"] == pytest.approx(weight / 2, rel=0.01)
        assert record["half_life_hours"] == pytest.approx(hours, rel=0.01)
        assert record["strength_low"] <= record["strength"] <= record["strength_high"]
        low, high = record["half_life_low"], record["half_life_high"]
        assert low <= record["half_life_hours"] <= high < 1.1 * low
    assert records[0]["strength_low"] == records[0]["strength_high"] == 1


def test_the_pull_at_an_events_own_item_is_left_out(tmp_path):
    """The same scores, but those of events of a drawn item are wrong."""
    records = timed(decayed, users=200, target=("drawn", "i1, i40"))
    for record in records:
        record.values[[event.item == "i1" for event in record.events]] = 50.0
    with InfluenceView(write(tmp_path, records)) as view:
        lives = {r["behavior"]: r["half_life_hours"] for r in behavior_strengths(view)}
    expected = {name: hours for name, (_, hours) in TRUTH.items()}
    assert lives == pytest.approx(expected, rel=0.01)


def test_a_behaviour_without_strength_has_no_half_life(tmp_path):
    def score(behavior, age, moment, random):
        noise = 0.3 * random.normal()
        return noise if behavior == "click" else noise + decayed(behavior, age, moment, random)

    with InfluenceView(write(tmp_path, timed(score, users=200, target=DRAWN))) as view:
        click = next(r for r in behavior_strengths(view) if r["behavior"] == "click")
    assert click["strength_low"] < 0 < click["strength_high"]
    assert (click["half_life_hours"], click["half_life_low"]) == (None, None)


def test_the_strength_does_not_depend_on_what_is_chosen_more_often(tmp_path):
    """Half of the events of a click are unlinked: its mean strength halves, its half-life stays."""

    def score(behavior, age, moment, random):
        linked = behavior != "click" or random.random() < 0.5
        return linked * decayed(behavior, age, moment, random)

    with InfluenceView(write(tmp_path, timed(score, users=400, target=DRAWN))) as view:
        click = next(r for r in behavior_strengths(view) if r["behavior"] == "click")
    assert click["half_life_low"] < TRUTH["click"][1] < click["half_life_high"]


def test_shares_add_up_and_keep_their_sign(chosen):
    records = shares_of_chosen(chosen)
    shares = {record["behavior"]: record["share_of_chosen"] for record in records}
    rows = chosen.table(
        f"SELECT behavior, sum(score) AS score FROM ({chosen.select('behavior', 'score')}) "
        "GROUP BY 1"
    ).to_pylist()
    sums = {row["behavior"]: row["score"] for row in rows}
    size = sum(map(abs, sums.values()))
    assert shares == pytest.approx({name: score / size for name, score in sums.items()})
    assert sum(record["share_of_events"] for record in records) == pytest.approx(1)
    assert all(r["share_low"] <= r["share_of_chosen"] <= r["share_high"] for r in records)


def test_chosen_targets_have_a_warning_and_no_strength(chosen):
    with pytest.raises(DataError, match=r"targets that were chosen.*--target drawn"):
        behavior_strengths(chosen)
    factors = analyze_factors(chosen, FactorOptions(factors=("behavior", "recency")))
    dynamics = analyze_dynamics(chosen)
    for analysis in (factors, dynamics):
        assert analysis.facts["measures"] == "share of what was chosen"
        assert analysis.shown[-1].startswith("warning: the targets were chosen")
        assert "--target drawn" in analysis.facts["warning"]
    assert {"weights", "share_of_chosen"} <= set(factors.tables)
    assert "strength" not in factors.tables
    for table in (factors.tables["weights"], dynamics.tables["half_lives"]):
        assert {record["measures"] for record in table.records} == {"share of what was chosen"}


def test_drawn_targets_have_strengths_and_no_warning(drawn):
    factors = analyze_factors(drawn, FactorOptions(factors=("behavior", "recency")))
    assert factors.facts["measures"] == "strength"
    assert "warning" not in factors.facts
    assert not any("warning" in line for line in factors.shown)
    assert list(factors.tables["strength"].records) == behavior_strengths(drawn)
    assert not {"weights", "share_of_chosen"} & set(factors.tables)
    lives = analyze_dynamics(drawn).tables["half_lives"].records
    hours = {life["level"]: life["half_life_hours"] for life in lives if life["level"] in TRUTH}
    assert hours == pytest.approx({name: own for name, (_, own) in TRUTH.items()}, rel=0.02)
    assert {life["measures"] for life in lives} == {"strength"}


def test_drawn_and_chosen_targets_are_not_mixed(tmp_path):
    records = influences(lambda *_: 1.0, users=20) + influences(
        lambda *_: 1.0, users=20, target=DRAWN
    )
    write(tmp_path, records, side=False)
    with pytest.raises(DataError, match="drawn and chosen targets together"):
        InfluenceView(tmp_path)
    with InfluenceView(tmp_path, choice=Choice(target="drawn")) as view:
        assert view.drawn


def test_strengths_are_read_from_the_gates_of_a_memory():
    gates = [
        BehaviorGate("view", 0.2, 1800.0, 30),
        BehaviorGate("cart", 1.0, 6 * 3600.0, 20),
        BehaviorGate("impression", 0.0, float("inf"), 10),
    ]
    records = strengths_of_memory(SimpleNamespace(gates=lambda: gates))
    found = [(r["behavior"], r["strength"], r["half_life_hours"], r["events"]) for r in records]
    assert found == [("cart", 1.0, 6.0, 20), ("view", 0.2, 0.5, 30), ("impression", 0.0, None, 10)]
