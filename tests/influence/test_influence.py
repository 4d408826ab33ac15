"""The record: what it prints, exports and adds up; scores of parts of events."""

# ruff: noqa: RUF001 - typographic signs are part of the texts.

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.errors import ConfigError, DataError
from llm_influence.influence.facts import USER, Player
from llm_influence.influence.influence import by_event, from_arrow, to_arrow
from llm_influence.influence.table_files import read_tables, write_table

FIELDS = (USER, *(Player(event, field) for event in (0, 1) for field in ("behavior", "item")))
SCORES = [0.5, 1.0, -0.25, 2.0, 0.125]  # of the user; of two fields of each of two events


@pytest.fixture
def fields(make):
    errors = np.array([0.1, 0.2, 0.3, 0.0, 0.5])
    return make(SCORES, players=FIELDS, standard_errors=errors, titles=["A", "B"])


def test_fields_add_up_to_their_event_and_the_user_to_the_frame(fields, make):
    whole = fields.by_event()
    np.testing.assert_allclose(whole.values, [0.75, 2.125])
    np.testing.assert_allclose(whole.standard_errors, [0.5, 0.5])
    assert whole.players is None
    assert whole.values.sum() + whole.prompt_score == sum(SCORES) + fields.prompt_score
    assert whole.prompt_score == fields.prompt_score + 0.5
    assert whole.by_event() is whole
    assert [event.title for event, _ in fields.ranked()] == ["B", "A"]


def test_a_block_of_fields_becomes_one_of_events(make):
    players = tuple(Player(event, field) for event in (0, 1, 2) for field in ("behavior", "item"))
    block = {"block": (0, 1, 3), "standard_errors": np.array([0.1, 0.1, 0.2, 0.1, 0.2, 0.2])}
    whole = make([0.5, 0.5, 2.0, 0.5, 1.0, 0.5], players=players, **block).by_event()
    np.testing.assert_allclose(whole.values, [1.75, 1.75, 1.5])
    np.testing.assert_allclose(whole.standard_errors, [0.25, 0.25, 0.4])
    assert whole.block == (0, 1)
    assert "Your 2 older actions together: +3.50 ± 0.98" in whole.to_text()


def test_what_shows_events_shows_the_sums(fields):
    whole = fields.by_event()
    assert fields.to_text() == whole.to_text()
    assert fields._repr_html_() == whole._repr_html_()
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert [bar.get_width() for bar in fields.plot().patches] == [0.75, 2.125]


def test_a_table_of_fields_comes_back_as_it_was(fields, make, tmp_path):
    fields = replace(fields, gates=np.array([0.25, 0.5]))
    mixed = [make([1.0, 2.0]), fields, make([1.0, 3.0], players=[Player(0), USER]), make([4.0])]
    table = read_tables(write_table(to_arrow(mixed), tmp_path / "t.parquet"))
    assert table["player"].to_pylist() == [0, 1, *range(5), 0, 1, 0]
    assert table["position"].to_pylist() == [0, 1, None, 0, 0, 1, 1, 0, None, 0]
    assert table["field"].to_pylist()[2:7] == ["user", *["behavior", "item"] * 2]
    assert table["field"].to_pylist()[7:] == [None, "user", None]
    assert table["rank"].to_pylist()[2:7] == [3, 2, 5, 1, 4]
    assert table["title"].to_pylist()[2:7] == [None, "A", "A", "B", "B"]
    assert table["gap_seconds"].to_pylist()[2:7] == [None, None, None, 86_400, 86_400]
    assert table["gate"].to_pylist()[2:8] == [None, 0.25, 0.25, 0.5, 0.5, None]
    for found, expected in zip(from_arrow(table), mixed, strict=True):
        np.testing.assert_equal(found.gates, expected.gates)
        assert found.players == (expected.players and tuple(expected.players))
        assert list(found.events) == list(expected.events)
        np.testing.assert_array_equal(found.values, expected.values)


def test_a_table_by_event_has_the_rows_of_the_records_by_event(fields, make):
    mixed = [make([1.0, 2.0]), fields]
    table = pa.concat_tables([to_arrow(mixed, "first"), to_arrow(mixed[1:], "second")])
    whole = by_event(table)
    records = [record.by_event() for record in [*mixed, fields]]
    assert whole.drop_columns(["run"]).equals(to_arrow(records).drop_columns(["run"]))
    assert whole["run"].to_pylist() == ["first"] * 4 + ["second"] * 2
    assert by_event(whole) is whole


def test_players_that_do_not_fit_the_events_are_refused(make, fields):
    for players in ([Player(0), Player(2)], [Player(0), Player(0, "item")]):
        broken = replace(make([1.0, 2.0]), players=players)
        with pytest.raises(DataError, match="players that are not of all"):
            to_arrow([broken])
    with pytest.raises(DataError, match="for 5 players"):
        to_arrow([make(SCORES[:4], players=FIELDS)])
    table = to_arrow([fields])
    lost = table["position"].to_pylist()
    lost[1] = lost[2] = 7
    place = table.column_names.index("position")
    wrong = table.set_column(place, table.schema.field(place), pa.array(lost, pa.int32()))
    with pytest.raises(DataError, match=r"positions \[1, 7\]"):
        from_arrow(wrong)


def test_the_record_prints_its_strongest_events_first(make):
    titles = ["Alien", "Fargo", "Heat"]
    assert repr(make([0.5, -2.0, 0.01], titles=titles, target_id="50")).splitlines() == [
        "Influence on item 'Star Wars (1977)' (3.2%) of user 196 by integrated_gradients: "
        "−1.49 log-odds from 3 events",
        "     −2.00  Fargo · rate 4",
        "     +0.50  Alien · rate 4",
        "     +0.01  Heat · rate 4",
    ]
    many = repr(make([0.1] * 20)).splitlines()
    assert len(many) == 10
    assert many[-1] == "  ... and 12 more"
    shares = repr(make([0.25, 0.75], units="share", prediction=float("nan"))).splitlines()
    assert shares[0].endswith("user 196 by integrated_gradients: shares of 2 events")
    assert shares[1] == "       75%  Film 1 · rate 4"


def test_the_strongest_events_are_those_of_large_absolute_value(make):
    influence = make([1.0, -3.0, 2.0, -1.0])
    strongest = [(event.item, value) for event, value in influence.top(3)]
    assert strongest == [("i1", -3.0), ("i2", 2.0), ("i3", -1.0)]
    assert len(influence.top(9)) == 4
    assert [value for _, value in influence.ranked()] == [2.0, 1.0, -1.0, -3.0]


def test_pandas_frame(make):
    pytest.importorskip("pandas")
    assert make([0.5, -1.0]).to_pandas()["score"].tolist() == [0.5, -1.0]


def test_shap_gets_values_that_add_up(make, monkeypatch):
    shap = SimpleNamespace(Explanation=lambda **parts: SimpleNamespace(**parts))
    monkeypatch.setitem(sys.modules, "shap", shap)
    found = make([0.5, -1.0], full_value=-4.25).to_shap()
    assert found.base_values + found.values.sum() == -4.25
    assert found.feature_names == ["Film 0 · rate 4", "Film 1 · rate 4"]
    assert found.data.tolist() == ["rate", "rate"]


@pytest.mark.parametrize(
    ("module", "call", "line"),
    [
        ("matplotlib.pyplot", "plot", r"pip install 'llm-influence\[plot\]'"),
        ("pandas", "to_pandas", r"pip install 'llm-influence\[frames\]'"),
        ("shap", "to_shap", r"pip install 'llm-influence\[shap\]'"),
    ],
)
def test_a_missing_library_is_named_with_its_pip_line(make, monkeypatch, module, call, line):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=line):
        getattr(make([1.0]), call)()


def test_events_that_were_scored_together_are_one_line_and_come_back(make, tmp_path):
    """In a table, in JSON, and as one line that is the sum of its events."""
    values, errors = [0.1, 0.1, 2.0, 0.1, -0.5], np.array([0.02, 0.02, 0.1, 0.02, 0.1])
    titles = ["A", "B", "C", "D", "E"]
    record = make(values, standard_errors=errors, titles=titles)
    blocked = replace(record, block=(0, 1, 3))
    table = read_tables(write_table(to_arrow([record, blocked]), tmp_path / "t.parquet"))
    assert table["in_block"].to_pylist()[5:] == [True, True, False, True, False]
    assert [found.block for found in from_arrow(table)] == [(), (0, 1, 3)]
    for name in ("one.json", "one.parquet"):
        assert type(blocked).load(blocked.save(tmp_path / name)).block == (0, 1, 3)
    first, *alone = blocked.lines()
    assert (first.label, first.value) == ("3 other events together (± 0.12)", pytest.approx(0.3))
    assert [line.value for line in alone] == [2.0, -0.5]
    older = replace(record, block=(0, 1), standard_errors=None).lines()[0]
    assert older.label == "2 older events together"
    assert "+0.30  3 other events together" in repr(blocked)
