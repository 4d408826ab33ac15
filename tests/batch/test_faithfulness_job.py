"""A comparison in a folder: nothing lost, nothing measured twice."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm_influence.batch.studies import measure_faithfulness
from llm_influence.errors import ExplanationError, OutputError
from llm_influence.faithfulness.evaluate import FaithfulnessOptions, evaluate_faithfulness

KILLED_JOB = """
from llm_influence.batch.studies import measure_faithfulness
from llm_influence.faithfulness.evaluate import FaithfulnessOptions
measure_faithfulness(
    model,
    [log.at(row) for row in range(6)],
    ["leave_one_out"],
    out,
    FaithfulnessOptions(metrics=("lds", "deletion_auc")),
    shard_size=2,
    on_shard=wait,
)
"""
OPTIONS = FaithfulnessOptions(metrics=("lds", "deletion_auc"))


@pytest.fixture(scope="module")
def histories(log):
    return [log.at(row) for row in range(6)]


def measure(bert, histories, out, options=OPTIONS, **how):
    how = {"shard_size": 2, "progress": False} | how
    return measure_faithfulness(bert, histories, ["leave_one_out"], out, options, **how)


@pytest.mark.slow
def test_a_killed_comparison_continues_and_loses_nothing(kill, tmp_path, bert, histories):
    out = tmp_path / "out"
    kill(KILLED_JOB, out, shards=1)
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
        (histories[:2], FaithfulnessOptions(metrics=("lds",)), "options"),
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


def test_an_error_keeps_what_was_measured(tmp_path, bert, histories):
    def fails(path):
        raise OutputError("no space", where=str(path), expected="space", fix="free some")

    with pytest.raises(OutputError, match="no space"):
        measure(bert, histories[:4], tmp_path, on_shard=fails)
    assert len(list(tmp_path.glob("part-*"))) == 1
    measure(bert, histories[:4], tmp_path)
    assert len(list(tmp_path.glob("part-*"))) == 2
