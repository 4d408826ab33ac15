"""Whose explanations a batch folder holds, and whether it holds all of them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.errors import DataError
from llm_influence.influence.batch_state import cards_of, check_model, models_of, notes_on

CARDS = {
    "explanations": 3,
    "lds": {"measured": 2, "median": 0.5, "lower_quartile": 0.25, "upper_quartile": 0.75},
    "completeness_gap": {"measured": 0},
}


@pytest.fixture
def folder(tmp_path):
    """A finished batch of two shards."""
    place = tmp_path / "batch"
    place.mkdir()
    names = ["part-00000.parquet", "part-00001.parquet"]
    for name in names:
        pq.write_table(pa.table({"row": [1, 2]}), place / name)
    plan = {"model": "abc", "users": 4, "shard_size": 2}
    shards = [{"file": name, "rows": 2} for name in names]
    (place / "plan.json").write_text(json.dumps(plan))
    (place / "manifest.json").write_text(json.dumps({"shards": shards, "cards": CARDS}))
    return place


def test_a_finished_folder_has_no_notes_and_states_its_quality(folder):
    assert notes_on([folder]) == []
    assert cards_of([folder]) == {
        "batch": "fidelity (LDS) of 2 of 3 explanations: median 0.5, quartiles 0.25 to 0.75"
    }


@pytest.mark.parametrize("source", ["batch", "", "batch/part-00000.parquet"])
def test_what_is_missing_is_said_of_a_folder_one_above_it_and_a_file(folder, source):
    place = folder.parent / source
    (folder / "part-00001.parquet").unlink()
    assert notes_on([place]) == ["batch lacks 1 of 2 shards (part-00001.parquet)"]
    (folder / "manifest.json").unlink()
    assert notes_on([place]) == ["batch is not finished: 1 of 2 shards are there"]


def test_failed_users_are_said(folder):
    manifest = json.loads((folder / "manifest.json").read_text()) | {"failed": 3}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert notes_on([folder]) == ["3 explanations of batch failed, see errors.parquet"]


def test_another_model_is_refused(folder):
    check_model([folder], "abc")
    with pytest.raises(DataError, match=r"another model \(abc\)"):
        check_model([folder], "xyz")


def test_two_models_together_are_said(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "plan.json").write_text('{"model": "xyz"}')
    (other / "manifest.json").write_text('{"shards": []}')
    assert models_of([folder, other]) == ["abc", "xyz"]
    assert notes_on([folder, other]) == ["explanations of 2 models together"]


def test_a_damaged_manifest_is_named(folder):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json"):
        notes_on([folder])
