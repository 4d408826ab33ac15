"""Batch explanation: nothing lost, nothing doubled, whoever computes it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.attribution.explainer import Explainer
from llm_influence.batch.explain import explain_batch
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError, OutputError, UnknownNameError
from llm_influence.influence.influence import to_arrow
from llm_influence.influence.table_files import read_tables
from tests import tiny

KILLED_JOB = """
import sys
sys.path.insert(0, sys.argv[1])
from tests import tiny
from llm_influence.attribution.explainer import Explainer
from llm_influence.jobs import batch
from llm_influence.modeling.model import InfluenceModel

def slowly(table, path, write=batch.write_table):
    write(table, path)
    print("shard", flush=True)
    sys.stdin.readline()

batch.write_table = slowly
model = InfluenceModel.from_pretrained(sys.argv[3])
batch.explain_batch(Explainer(model), tiny.small_log(), sys.argv[2], shard_size=3)
"""


def wait_for_shard(process):
    """Read until the job has written a shard; other lines of libraries may stand between."""
    assert b"shard\n" in iter(process.stdout.readline, b"")


def assert_same_rows(left, right):
    """Equal rows; numbers that were computed in other batches may differ in the last digits."""
    assert left.num_rows == right.num_rows
    for name in left.column_names:
        if name == "run":
            continue
        if pa.types.is_floating(left.schema.field(name).type):
            pair = (column.to_numpy() for column in (left[name], right[name]))
            np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            assert left[name].equals(right[name]), name


@pytest.fixture(scope="module")
def bert():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def explained(bert, log, tmp_path_factory):
    out = tmp_path_factory.mktemp("explained")
    return explain_batch(Explainer(bert), log, out, shard_size=3, run="r", progress=False)


def test_shards_hold_what_the_explainer_says_for_every_user_once(explained, bert, log):
    expected = to_arrow(Explainer(bert).explain(log), "r")
    assert_same_rows(read_tables(explained.folder), expected)
    manifest = json.loads((explained.folder / "manifest.json").read_text())
    assert manifest["rows"] == explained.rows == expected.num_rows
    assert [shard["rows"] for shard in manifest["shards"]] == [
        pq.read_metadata(explained.folder / shard["file"]).num_rows for shard in manifest["shards"]
    ]


def test_a_killed_job_goes_on_and_loses_or_doubles_no_row(tmp_path, bert, log, explained):
    bert.save_pretrained(tmp_path / "model")
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_JOB, str(Path.cwd()), str(out), str(tmp_path / "model")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    wait_for_shard(process)
    process.stdin.write(b"\n")
    process.stdin.flush()
    wait_for_shard(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    (out / ".part-00002.parquet.1.tmp").write_bytes(b"half a shard")
    survivors = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(survivors) == 2
    assert not (out / "manifest.json").exists()

    result = explain_batch(Explainer(bert), log, out, shard_size=3, progress=False)
    assert result.explained_now == 12 - 2 * 3
    assert {name: (out / name).stat().st_mtime_ns for name in survivors} == survivors
    assert not list(out.glob(".part-*"))
    assert_same_rows(read_tables(out), read_tables(explained.folder))


def test_two_processes_write_the_rows_of_one(tmp_path, bert, log):
    run = tmp_path / "run"
    bert.save_pretrained(run)
    from llm_influence.data.splits import split_log

    split_log(log).save(run / "split")
    tiny.run_config().save(run / "run.yaml")
    command = ["scripts/explain_batch.py", "--model", str(run), "--shard-size", "2", "--threads=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, *command, "--out", str(one)], check=True, capture_output=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *launcher, *command, "--out", str(two)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert read_tables(one).equals(read_tables(two))
    assert (one / "manifest.json").read_text() == (two / "manifest.json").read_text()


def test_a_folder_of_another_run_is_refused_and_left_alone(explained, bert, log):
    before = sorted(path.name for path in explained.folder.iterdir())
    with pytest.raises(OutputError, match="method: 'leave_one_out', now 'recency'"):
        explain_batch(Explainer(bert, "recency"), log, explained.folder, shard_size=3)
    assert sorted(path.name for path in explained.folder.iterdir()) == before


def test_what_people_rejected_is_not_written_again(bert, log, explained, tmp_path):
    """Whole shards of it too, and in a folder of their own."""
    records = Explainer(bert).explain(log)
    withheld = {record.key for record in records[:4]}  # the first shard, and one of the second
    made = explain_batch(
        Explainer(bert), log, tmp_path, shard_size=3, withheld=withheld, progress=False
    )
    assert_same_rows(read_tables(made.folder), to_arrow(records[4:]))
    assert pq.read_metadata(tmp_path / "part-00000.parquet").num_rows == 0
    with pytest.raises(OutputError, match="withheld: "):
        explain_batch(Explainer(bert), log, tmp_path, shard_size=3, progress=False)


def test_unknown_items_are_refused_before_anything_is_computed(tmp_path, bert):
    table = pa.table({"user_id": ["u"], "item_id": ["new"], "timestamp": [5], "behavior": ["cart"]})
    with pytest.raises(UnknownNameError, match="'new'"):
        explain_batch(Explainer(bert), BehaviorLog.read(table), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_failed_at_once_does_not_keep_the_folder(tmp_path, bert, log):
    with pytest.raises(ExplanationError, match="'none' is no item"):
        explain_batch(Explainer(bert), log, tmp_path, target="item:none", progress=False)
    assert explain_batch(Explainer(bert), log, tmp_path, progress=False).users == len(log)


def test_an_unwritable_place_is_an_output_error(tmp_path, bert, log):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        explain_batch(Explainer(bert), log, tmp_path / "file" / "out", progress=False)


def test_a_full_disk_keeps_the_shards_already_written(tmp_path, bert, log, monkeypatch):
    from llm_influence.batch import explain as batch

    real, calls = batch.write_table, []

    def fills_up(table, path):
        calls.append(path)
        if len(calls) == 3:
            raise OutputError("no space", where=str(path), expected="space", fix="free some")
        return real(table, path)

    monkeypatch.setattr(batch, "write_table", fills_up)
    with pytest.raises(OutputError, match="no space"):
        explain_batch(Explainer(bert), log, tmp_path, shard_size=3, progress=False)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 2
    result = explain_batch(Explainer(bert), log, tmp_path, shard_size=3, progress=False)
    assert result.explained_now == 6


def test_items_and_users_stand_beside_the_shards(bert, tmp_path):
    log = tiny.small_log()
    explain_batch(Explainer(bert, "recency"), log, tmp_path, progress=False)
    items = pq.read_table(tmp_path / "items.parquet")
    assert items.to_pylist() == tiny.items_table().to_pylist()
    assert pq.read_table(tmp_path / "users.parquet").to_pylist() == [
        {"user_id": user, **log.features(row)} for row, user in enumerate(log.user_ids.to_pylist())
    ]
    assert set(read_tables(tmp_path)["user_id"].to_pylist()) == set(log.user_ids.to_pylist())
