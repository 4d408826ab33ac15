"""A comparison in a folder: nothing lost, nothing measured twice."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm_influence.batch import faithfulness_job as job
from llm_influence.batch.faithfulness_job import measure_faithfulness
from llm_influence.errors import ExplanationError, OutputError
from llm_influence.faithfulness.evaluate import evaluate_faithfulness
from llm_influence.faithfulness.options import Options
from tests import tiny

KILLED_JOB = """
import sys
sys.path.insert(0, sys.argv[1])
from llm_influence.faithfulness.options import Options
from llm_influence.jobs import faithfulness as job
from llm_influence.modeling.model import InfluenceModel
from tests import tiny

def slowly(path, write, whole=job.write_whole):
    whole(path, write)
    print("shard", flush=True)
    sys.stdin.readline()

job.write_whole = slowly
log = tiny.small_log()
job.measure_faithfulness(
    InfluenceModel.from_pretrained(sys.argv[3]),
    [log.at(row) for row in range(6)],
    ["leave_one_out"],
    sys.argv[2],
    Options(metrics=("lds", "deletion_auc")),
    shard_size=2,
)
"""
OPTIONS = Options(metrics=("lds", "deletion_auc"))


@pytest.fixture(scope="module")
def bert():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def histories(log):
    return [log.at(row) for row in range(6)]


def measure(bert, histories, out, options=OPTIONS, **how):
    how = {"shard_size": 2, "progress": False} | how
    return measure_faithfulness(bert, histories, ["leave_one_out"], out, options, **how)


def test_a_killed_comparison_goes_on_and_loses_nothing(tmp_path, bert, histories):
    bert.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_JOB, str(Path.cwd()), str(out), str(tmp_path / "model")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert b"shard\n" in iter(process.stdout.readline, b"")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    (out / ".part-00001.parquet.1.tmp").write_bytes(b"half a shard")
    survivor = out / "part-00000.parquet"
    moment = survivor.stat().st_mtime_ns
    assert list(out.glob("part-*")) == [survivor]
    assert not (out / "faithfulness.json").exists()

    found = measure(bert, histories, out)
    assert survivor.stat().st_mtime_ns == moment
    assert not list(out.glob(".part-*"))
    names = ("history", "user_id", "removal", "method", "metric")
    order = [(name, "ascending") for name in names]
    whole = evaluate_faithfulness(bert, histories, ["leave_one_out"], OPTIONS).rows.sort_by(order)
    ours = found.rows.sort_by(order)
    assert ours.select(names).equals(whole.select(names))
    np.testing.assert_allclose(
        ours["value"].to_numpy(), whole["value"].to_numpy(), rtol=1e-3, atol=1e-4
    )
    stored = sum(pq.read_metadata(path).num_rows for path in out.glob("part-*"))
    assert stored == found.rows.num_rows


def test_a_folder_of_another_comparison_is_refused(tmp_path, bert, histories):
    measure(bert, histories[:2], tmp_path)
    for given, options, what in (
        (histories[:2], Options(metrics=("lds",)), "options"),
        (histories[:1], OPTIONS, "histories"),
    ):
        with pytest.raises(OutputError, match=f"another run .*{what}"):
            measure(bert, given, tmp_path, options)


def test_a_mistake_writes_nothing(tmp_path, bert, histories):
    with pytest.raises(ExplanationError, match="unknown method"):
        measure_faithfulness(bert, histories, ["shapely"], tmp_path / "out")
    with pytest.raises(OutputError, match="shard_size is 0"):
        measure(bert, histories, tmp_path / "out", shard_size=0)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_what_was_measured(tmp_path, bert, histories, monkeypatch):
    calls, real = [], job.write_whole

    def fills_up(path, write):
        calls.append(path)
        if len(calls) == 2:
            raise OutputError("no space", where=str(path), expected="space", fix="free some")
        return real(path, write)

    monkeypatch.setattr(job, "write_whole", fills_up)
    with pytest.raises(OutputError, match="no space"):
        measure(bert, histories[:4], tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("part-*"))) == 1
    measure(bert, histories[:4], tmp_path)
    assert len(list(tmp_path.glob("part-*"))) == 2
