"""Output folders: one job at a time, no shard of another plan, damaged shards made again."""

import json
import os
import socket
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.batch.lock import LOCK, locked
from llm_influence.batch.plan import LEAST_CARDS, model_setting, sampled_users, table_digest
from llm_influence.batch.shards import Shards
from llm_influence.errors import ExplanationError, OutputError

PLAN = {"model": "a", "method": "m"}


def fill(folder, plan=PLAN, bad=(), rows=7):
    """Fill a folder with the numbers of its rows; returns the rows that were computed."""
    seen = []

    def compute(part):
        seen.extend(part)
        failures = {
            row: (f"u{row}", ExplanationError("bad", where="w", expected="e", fix="f"))
            for row in part
            if row in bad
        }
        return pa.table({"row": [row for row in part if row not in bad]}), failures

    shards = Shards(folder, plan, rows, 3)
    with shards.locked():
        shards.fill(compute, name="test", progress=False)
        shards.write_manifest()
    return seen


def rows_in(folder):
    tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("part-*.parquet"))]
    return pa.concat_tables(tables)["row"].to_pylist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:12] + bytes([content[12] ^ 255]) + content[13:],
    ],
    ids=["cut", "empty", "a flipped byte"],
)
def test_a_damaged_shard_is_made_again_and_the_others_stay(tmp_path, damage):
    fill(tmp_path)
    path = tmp_path / "part-00001.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="part-00001.parquet is damaged"):
        assert fill(tmp_path) == [3, 4, 5]
    assert rows_in(tmp_path) == list(range(7))


def test_a_lost_plan_adopts_its_own_shards_and_no_others(tmp_path):
    fill(tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(OutputError, match="of another plan"):
        fill(tmp_path, PLAN | {"model": "b"})
    assert not (tmp_path / "plan.json").exists()
    assert fill(tmp_path) == []


def test_a_shard_under_the_name_of_another_is_refused(tmp_path):
    fill(tmp_path)
    (tmp_path / "part-00000.parquet").replace(tmp_path / "part-00001.parquet")
    with pytest.raises(OutputError, match=r"part-00001\.parquet is of another plan or other rows"):
        fill(tmp_path)


def test_a_key_that_only_one_plan_has_is_a_difference(tmp_path):
    fill(tmp_path, PLAN | {"setting": "x"})
    with pytest.raises(OutputError, match="setting: 'x', now None"):
        fill(tmp_path)


def test_files_of_killed_processes_are_removed(tmp_path):
    fill(tmp_path)
    for name in (".part-00001.parquet.1.tmp", ".manifest.json.1.tmp", ".items.parquet.7.tmp"):
        (tmp_path / name).write_text("half")
    fill(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_failed_rows_are_listed_and_tried_again(tmp_path):
    fill(tmp_path, bad=(1, 4))
    errors = pq.read_table(tmp_path / "errors.parquet").to_pylist()
    assert [error["user_id"] for error in errors] == ["u1", "u4"]
    assert errors[0]["error"] == "ExplanationError"
    assert errors[0]["fix"] == "f"
    assert json.loads((tmp_path / "manifest.json").read_text())["failed"] == 2
    assert fill(tmp_path, bad=(1, 4)) == [1, 4]
    assert fill(tmp_path, bad=(4,)) == [1, 0, 1, 2, 4]
    assert rows_in(tmp_path) == [0, 1, 2, 3, 5, 6]
    assert fill(tmp_path) == [4, 3, 4, 5]
    assert not (tmp_path / "errors.parquet").exists()


def test_where_every_row_of_the_first_shard_fails_the_error_is_raised(tmp_path):
    with pytest.raises(ExplanationError, match="bad"):
        fill(tmp_path, bad=range(3))


def test_a_second_job_in_the_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()} on"):
        fill(tmp_path)
    assert fill(tmp_path) == list(range(7))
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_an_ended_process_is_taken_and_that_of_another_host_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = {"pid": ended.pid, "host": socket.gethostname(), "started": "1"}
    for text in (json.dumps(stale), json.dumps(stale | {"pid": os.getpid()}), "", "{"):
        (tmp_path / LOCK).write_text(text)
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).write_text(json.dumps(stale | {"host": "elsewhere"}))
    with pytest.raises(OutputError, match="if that job has died, delete"), locked(tmp_path):
        pass


def test_the_sample_of_users_does_not_depend_on_their_order():
    users = [f"u{number}" for number in range(20_000)]
    sample = sampled_users(users, 50, seed=3)
    assert len(sample) == 400
    assert sampled_users(users[::-1], 50, seed=3) == sample
    assert sampled_users(users, 50, seed=4) != sample
    assert len(sampled_users(users[:1000], 50, seed=3)) == LEAST_CARDS
    assert sampled_users(users[:LEAST_CARDS], 50, seed=3) is None
    assert sampled_users(users, 1, seed=3) is None
    with pytest.raises(ExplanationError, match="card_sample"):
        sampled_users(users, 0, seed=3)


def test_the_setting_changes_with_frozen_weights_and_rendering(bert, monkeypatch):
    before = model_setting(bert)
    assert model_setting(bert) == before
    weight = next(p for p in bert.backbone.model.parameters() if not p.requires_grad)
    kept = weight.data.clone()
    weight.data += 1
    assert model_setting(bert) != before
    weight.data = kept
    assert model_setting(bert) == before
    monkeypatch.setattr(bert.encoder, "max_events", bert.encoder.max_events - 1)
    assert model_setting(bert) != before


def test_a_table_digest_tells_cells_columns_and_missing_values_apart():
    tables = [{"a": ["x", None]}, {"b": ["x", None]}, {"a": ["x", "None"]}, {"a": ["x\n", None]}]
    assert len({table_digest(pa.table(table)) for table in tables}) == 4
