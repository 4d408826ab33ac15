"""The long form: round trips, and rows that are refused."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.errors import DataError, SchemaError
from llm_influence.influence.influence import from_arrow, to_arrow
from llm_influence.influence.table import SCHEMA
from llm_influence.influence.table_files import read_tables, write_table
from tests.influence.conftest import assert_same


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


def test_wrong_types_and_nulls_are_refused(influences, tmp_path):
    table = to_arrow(influences)
    place = SCHEMA.names.index("score")
    for wrong in (pa.array(["much"] * len(table)), pa.nulls(len(table), pa.float64())):
        with pytest.raises(SchemaError):
            write_table(table.set_column(place, "score", wrong), tmp_path / "t.parquet")


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


def test_influence_needs_no_torch():
    code = (
        "import sys, llm_influence.influence.table, llm_influence.influence.plots, "
        "llm_influence.influence.text; "
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
