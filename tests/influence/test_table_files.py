"""Influence tables, single explanations and the fairness test as files: whole or not there."""

import errno

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.errors import ConfigError, DataError, OutputError, SchemaError
from llm_influence.influence.facts import USER, Player
from llm_influence.influence.influence import Influence, from_arrow, to_arrow
from llm_influence.influence.table_files import (
    FAIRNESS_TEST_SCHEMA,
    read_fairness_test,
    read_tables,
    write_fairness_test,
    write_table,
)
from tests.influence.conftest import assert_same


def test_a_folder_is_read_in_order_of_name(influences, tmp_path):
    for place, influence in enumerate(influences):
        write_table(to_arrow([influence]), tmp_path / f"part-{place}.parquet")
    (tmp_path / ".part-9.parquet.1.tmp").write_text("half a file")
    assert_same(from_arrow(read_tables(tmp_path)), influences)
    assert_same(from_arrow(read_tables([tmp_path / "part-1.parquet"])), influences[1:2])


def test_another_schema_version_is_refused(influences, tmp_path):
    table = to_arrow(influences)
    for metadata, said in [({"llm_influence.schema": "0"}, "'0'"), ({}, "no schema version")]:
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
        with pytest.raises(SchemaError, match=said):
            read_tables(tmp_path / "t.parquet")


def test_missing_columns_are_named(influences, tmp_path):
    table = to_arrow(influences).drop_columns(["score", "rank"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="lacks 'score', 'rank'"):
        read_tables(tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="'score'"):
        write_table(table, tmp_path / "u.parquet")


@pytest.mark.parametrize("case", ["absent", "empty folder", "not parquet", "no path"])
def test_what_cannot_be_read_is_named(case, tmp_path):
    place = {"absent": tmp_path / "none.parquet", "not parquet": tmp_path / "t.parquet"}
    if case == "not parquet":
        place[case].write_text("user_id,score")
    with pytest.raises(DataError, match="Fix"):
        read_tables([] if case == "no path" else place.get(case, tmp_path))


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


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_one_explanation_is_saved_and_loaded(influences, make, tmp_path, suffix):
    gates = np.array([0.5])
    fields = make([1.0, -0.5], players=(Player(0, "item"), USER), gates=gates)
    for place, influence in enumerate([*influences, fields]):
        path = influence.save(tmp_path / f"{place}{suffix}")
        assert_same([Influence.load(path)], [influence])


def test_a_file_of_another_kind_or_number_is_refused(influences, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in '\.csv'"):
        influences[0].save(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=r"\.json or \.parquet"):
        Influence.load(tmp_path / "t")
    with pytest.raises(DataError, match="3 explanations"):
        Influence.load(write_table(to_arrow(influences), tmp_path / "t.parquet"))
    for text in ("[]", "{", '{"schema": "0"}', '{"schema": "1"}'):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(DataError, match=r"t\.json"):
            Influence.load(tmp_path / "t.json")
    with pytest.raises(DataError, match="No such file"):
        Influence.load(tmp_path / "none.json")


def test_a_fairness_test_comes_back_and_other_tables_are_refused(tmp_path):
    path = write_fairness_test(FAIRNESS_TEST_SCHEMA.empty_table(), tmp_path)
    assert read_fairness_test(path).schema.equals(FAIRNESS_TEST_SCHEMA)
    table = pa.table({"user_id": ["u"]})
    metadata = FAIRNESS_TEST_SCHEMA.metadata
    for wrong in (table, table.replace_schema_metadata(metadata)):
        pq.write_table(wrong, path)
        with pytest.raises(SchemaError, match="another table"):
            read_fairness_test(path)
    path.write_text("user_id")
    with pytest.raises(DataError, match="Parquet"):
        read_fairness_test(path)
