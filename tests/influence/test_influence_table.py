"""The long form: round trips, what is refused, files that are whole or not there."""

import errno
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.errors import DataError, OutputError, SchemaError
from llm_influence.influence.table import from_arrow, to_arrow
from llm_influence.influence.table_files import SCHEMA, read_tables, write_table


@pytest.fixture
def influences(make):
    return [
        make([0.5, -1.0, 2.0], values=[1.0, None, 4.5], titles=["A", "", "C"]),
        make([0.0], method="random", units="share", user_id="7", gates=np.array([0.25])),
        make(
            [1.0, 1.0],
            standard_errors=np.array([0.1, 0.2]),
            method="shapley",
            card={"largest_standard_error": 0.2, "converged": False, "lds": 0.5}
            | {"agreement": -1.0, "agreement_with": "random", "card_evaluations": 18},
        ),
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert list(a.events) == list(b.events)
        np.testing.assert_array_equal(a.scores, b.scores)
        assert (a.standard_errors is None) == (b.standard_errors is None)
        if b.standard_errors is not None:
            np.testing.assert_array_equal(a.standard_errors, b.standard_errors)
        assert a.players == b.players
        np.testing.assert_equal(a.gates, b.gates)
        np.testing.assert_equal(asdict(a.quality), asdict(b.quality))  # nan is nan
        for name in ("user_id", "target", "target_id", "target_name"):
            assert getattr(a, name) == getattr(b, name)
        for name in ("prompt_score", "base_value", "full_value", "prediction"):
            assert getattr(a, name) == getattr(b, name)


def test_round_trip_through_arrow_and_parquet(influences, tmp_path):
    table = to_arrow(influences, run="first")
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert_same(from_arrow(table), influences)
    path = write_table(table, tmp_path / "new" / "influence.parquet")
    assert read_tables(path).equals(table)
    assert_same(from_arrow(read_tables(path)), influences)
    assert [file.name for file in path.parent.iterdir()] == ["influence.parquet"]


def test_rows_say_what_they_should(influences):
    rows = to_arrow(influences, run="first").to_pydict()
    assert rows["position"] == [0, 1, 2, 0, 0, 1]
    assert rows["gap_seconds"] == [None, 86_400, 86_400, None, None, 86_400]
    assert rows["value"] == [1.0, None, 4.5, 4.0, 4.0, 4.0]
    assert rows["rank"] == [2, 3, 1, 1, 2, 1]  # a tie puts the more recent first
    assert rows["standard_error"] == [None, None, None, None, 0.1, 0.2]
    assert set(rows["run"]) == {"first"}


def test_what_was_not_measured_is_null_in_the_table_and_nan_in_the_record(make):
    table = to_arrow([make([1.0], gap=float("nan")), make([1.0], card={"lds": 0.0})])
    for name in (
        "completeness_gap",
        "largest_standard_error",
        "lds",
        "agreement",
        "bfloat16_error",
    ):
        assert table[name][0].as_py() is None
        assert np.isnan(getattr(from_arrow(table)[0].quality, name))
    assert table["lds"][1].as_py() == 0
    assert table["converged"].to_pylist() == [None, None]


def test_ranks_are_those_of_the_record(make):
    scores = np.random.default_rng(0).integers(-2, 3, 40).astype(float)
    influence = make(scores)
    order = np.argsort(to_arrow([influence])["rank"].to_numpy())
    assert [event.item for event, _ in influence.ranked()] == [f"i{place}" for place in order]


def test_no_explanation_is_a_table_without_rows():
    assert to_arrow([]).schema.equals(SCHEMA)
    assert from_arrow(to_arrow([])) == []


def test_a_folder_is_read_in_order_of_name(influences, tmp_path):
    for place, influence in enumerate(influences):
        write_table(to_arrow([influence]), tmp_path / f"part-{place}.parquet")
    (tmp_path / ".part-9.parquet.1.tmp").write_text("half a file")
    assert_same(from_arrow(read_tables(tmp_path)), influences)
    assert_same(from_arrow(read_tables([tmp_path / "part-1.parquet"])), influences[1:2])


def test_a_file_from_before_a_column_was_added_is_read_without_it(make, tmp_path):
    now = [make([1.0, 2.0], card={"bfloat16_error": 0.01})]
    table = to_arrow(now).drop_columns("bfloat16_error")
    pq.write_table(
        table.replace_schema_metadata({"llm_influence.schema": "2"}), tmp_path / "2.parquet"
    )
    write_table(to_arrow(now), tmp_path / "3.parquet")
    read = read_tables(tmp_path)
    assert read.schema.equals(SCHEMA)
    assert read["bfloat16_error"].to_pylist() == [None, None, 0.01, 0.01]
    assert [np.isnan(found.quality.bfloat16_error) for found in from_arrow(read)] == [True, False]


def test_another_schema_version_is_refused(influences, tmp_path):
    table = to_arrow(influences)
    for metadata, said in [({"llm_influence.schema": "1"}, "'1'"), ({}, "no schema version")]:
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
        with pytest.raises(SchemaError, match=said):
            read_tables(tmp_path / "t.parquet")


def test_missing_columns_are_named(influences, tmp_path):
    table = to_arrow(influences).drop_columns(["score", "rank"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="missing columns 'score', 'rank'"):
        read_tables(tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="'score'"):
        write_table(table, tmp_path / "u.parquet")


def test_wrong_types_and_nulls_are_refused(influences, tmp_path):
    table = to_arrow(influences)
    place = SCHEMA.names.index("score")
    for wrong in (pa.array(["much"] * len(table)), pa.nulls(len(table), pa.float64())):
        with pytest.raises(SchemaError):
            write_table(table.set_column(place, "score", wrong), tmp_path / "t.parquet")


@pytest.mark.parametrize("case", ["absent", "empty folder", "not parquet", "no path"])
def test_what_cannot_be_read_is_named(case, tmp_path):
    place = {"absent": tmp_path / "none.parquet", "not parquet": tmp_path / "t.parquet"}
    if case == "not parquet":
        place[case].write_text("user_id,score")
    with pytest.raises(DataError, match="Fix"):
        read_tables([] if case == "no path" else place.get(case, tmp_path))


def test_broken_explanations_are_refused(make):
    with pytest.raises(DataError, match="nan"):
        to_arrow([make([1.0, float("nan")])])
    with pytest.raises(DataError, match="no event"):
        to_arrow([make([])])
    with pytest.raises(DataError, match="follows"):
        to_arrow([make([1.0, 2.0], times=[9, 5])])


def test_rows_lost_or_mixed_up_are_refused(influences):
    table = to_arrow(influences)
    for rows in ([1, 2], [0, 2, 1], [0, 1, 2, 5]):
        with pytest.raises(DataError, match="player"):
            from_arrow(table.take(rows))


def test_a_full_disk_leaves_the_old_file_and_no_other(influences, tmp_path, monkeypatch):
    path = write_table(to_arrow(influences[:1]), tmp_path / "t.parquet")

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match="No space left"):
        write_table(to_arrow(influences), path)
    assert len(read_tables(path)) == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_a_folder_is_an_output_error(influences, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_table(to_arrow(influences), tmp_path / "file" / "t.parquet")


def test_influence_needs_no_torch():
    code = (
        "import sys, llm_influence.influence.table, llm_influence.influence.plots, "
        "llm_influence.influence.text; "
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
