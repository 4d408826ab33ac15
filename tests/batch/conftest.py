"""A job that is killed while it works, and models shared by the tests."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests import tiny

START = """
import sys
sys.path.insert(0, sys.argv[1])
from tests import tiny
from llm_influence.modeling.model import InfluenceModel

out, model, log = sys.argv[2], InfluenceModel.from_pretrained(sys.argv[3]), tiny.small_log()

def wait(path):
    print("shard", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="session")
def bert():
    return tiny.tiny_model()


@pytest.fixture
def kill(bert, tmp_path) -> Callable[[str, Path, int], None]:
    """Run code that passes ``on_shard=wait`` to a job, and kill it after some shards."""

    def run(code: str, out: Path, shards: int) -> None:
        bert.save_pretrained(tmp_path / "model")
        process = subprocess.Popen(
            [sys.executable, "-c", START + code, str(Path.cwd()), str(out), tmp_path / "model"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(shards):
            if number:
                process.stdin.write(b"\n")
                process.stdin.flush()
            # Libraries may print other lines.
            assert b"shard\n" in iter(process.stdout.readline, b"")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        (out / f".part-{shards:05d}.parquet.1.tmp").write_bytes(b"half a shard")

    return run


def assert_same_rows(left: pa.Table, right: pa.Table, leave_out: Sequence[str] = ("run",)) -> None:
    """Equal rows; numbers that were computed in other batches may differ in the last digits."""
    assert left.num_rows == right.num_rows
    for name in set(left.column_names) - set(leave_out):
        if pa.types.is_floating(left.schema.field(name).type):
            pair = (column.to_numpy() for column in (left[name], right[name]))
            np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            assert left[name].equals(right[name]), name
