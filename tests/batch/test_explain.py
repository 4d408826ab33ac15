"""Batch explanation: no row lost or doubled, on any number of processes and after any kill."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence import cli
from llm_influence.attribution.drawn import Drawn
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Behavior, Feedback, Item
from llm_influence.batch.explain import explain_batch, outcomes
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, split_log
from llm_influence.errors import ConfigError, ExplanationError, OutputError, UnknownNameError
from llm_influence.influence.influence import from_arrow, to_arrow
from llm_influence.influence.table_files import read_tables
from llm_influence.run import Run
from tests import tiny
from tests.batch.conftest import START, assert_same_rows

KILLED_JOB = """
from llm_influence.attribution.explainer import Explainer
from llm_influence.batch.explain import explain_batch
explain_batch(Explainer(model), log, out, shard_size=3, on_shard=wait)
"""
HEAD = {"weight": 1.0, "kind": "binary", "positive_from": 3.0}


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


def test_a_killed_job_continues_and_loses_or_doubles_no_row(kill, tmp_path, bert, log, explained):
    out = tmp_path / "killed"
    kill(KILLED_JOB, out, shards=2)
    survivors = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(survivors) == 2
    assert not (out / "manifest.json").exists()

    result = explain_batch(Explainer(bert), log, out, shard_size=3, progress=False)
    assert result.explained_now == 12 - 2 * 3
    assert {name: (out / name).stat().st_mtime_ns for name in survivors} == survivors
    assert not list(out.glob(".part-*"))
    assert_same_rows(read_tables(out), read_tables(explained.folder))


@pytest.mark.slow
def test_the_command_on_two_processes_writes_the_rows_of_one(tmp_path, bert, log):
    run = tmp_path / "run"
    bert.save_pretrained(run)
    split_log(log).save(run / "split")
    tiny.run_config().save(run / "run.yaml")
    program = str(Path(sys.executable).with_name("llm-influence"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no_python"]
    for folder, start in (("one", []), ("two", [*launcher, "--nproc_per_node=2"])):
        words = ["explain", "--model", run, "--shard-size", "2", "--out", tmp_path / folder]
        # the launcher gives each process one thread; sums of more threads differ in the last digit
        done = subprocess.run(
            [*start, program, *words],
            capture_output=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"destroy_process_group" not in done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert read_tables(one).equals(read_tables(two))
    assert (one / "manifest.json").read_text() == (two / "manifest.json").read_text()


def test_a_folder_of_another_run_is_refused_and_left_alone(explained, bert, log):
    before = sorted(path.name for path in explained.folder.iterdir())
    with pytest.raises(OutputError, match="method: 'group_shapley', now 'recency'"):
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


def test_every_draw_is_an_explanation_whatever_the_size_of_the_shards(bert, log, tmp_path):
    explainer = Explainer(bert, "leave_one_out", fidelity_masks=0)
    tables = []
    for size in (5, 64):
        out = tmp_path / str(size)
        result = explain_batch(
            explainer, log, out, target="drawn:2", shard_size=size, progress=False
        )
        assert (result.users, result.explained_now) == (len(log), 2 * len(log))
        tables.append(read_tables(out))
    assert_same_rows(*tables)
    records = from_arrow(tables[0])
    assert {record.target for record in records} == {"drawn"}
    expected = explainer.explain(log.at(3), Drawn(2, number=1))
    assert (records[7].user_id, records[7].target_id) == (expected.user_id, expected.target_id)
    np.testing.assert_allclose(records[7].values, expected.values, atol=1e-5)


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


def test_an_error_keeps_the_shards_already_written(tmp_path, bert, log):
    def fails(path):
        if path.name == "part-00001.parquet":
            raise OutputError("no space", where=str(path), expected="space", fix="free some")

    with pytest.raises(OutputError, match="no space"):
        explain_batch(Explainer(bert), log, tmp_path, shard_size=3, progress=False, on_shard=fails)
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


@pytest.fixture(scope="module")
def feedback_model():
    return tiny.tiny_model(feedback_head=HEAD)


@pytest.fixture(scope="module")
def examples():
    return split_log(tiny.small_log()).test


def explain(feedback_model, examples, folder, **options):
    options = {"shard_size": 5, "progress": False} | options
    explain_batch(Explainer(feedback_model, fidelity_masks=0), examples, folder, **options)
    return read_tables(folder)


@pytest.mark.parametrize("target", ["item", "behavior", "feedback"])
def test_every_example_is_explained_with_what_came_as_its_target(
    feedback_model, examples, tmp_path, target
):
    found = from_arrow(explain(feedback_model, examples, tmp_path, target=target))
    rows = pq.read_table(tmp_path / "outcomes.parquet").to_pylist()
    assert len(found) == len(rows) == len(examples)
    explainer = Explainer(feedback_model, fidelity_masks=0)
    for number in (0, 3, 11):
        came = rows[number]
        wanted = {
            "item": Item(came["item_id"]),
            "behavior": Behavior(came["behavior"]),
            "feedback": Feedback(came["item_id"], came["behavior"]),
        }[target]
        alone = explainer.explain(examples.history(number), wanted)
        assert (found[number].user_id, found[number].target_id) == (
            came["user_id"],
            alone.target_id,
        )
        np.testing.assert_allclose(found[number].values, alone.values, rtol=1e-3, atol=1e-5)
        assert came["before"] == len(alone.events) + alone.quality.left_out


def test_outcomes_are_the_events_that_came(examples):
    table, whole = outcomes(examples), examples.log.to_table().to_pylist()
    for row, place in zip(table.to_pylist(), examples.events, strict=True):
        event = whole[place]
        assert all(row[name] == event[name] for name in ("user_id", "item_id", "behavior"))
        assert row["value"] == event["value"]
    assert table["label"].null_count == len(table)  # this log has none


def test_a_broken_off_job_goes_on_and_other_examples_are_refused(
    feedback_model, examples, tmp_path
):
    whole = explain(feedback_model, examples, tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    assert_same_rows(explain(feedback_model, examples, tmp_path), whole)
    fewer = examples.select(np.arange(len(examples)) > 0)
    with pytest.raises(OutputError, match="examples: "):
        explain(feedback_model, fewer, tmp_path)
    with pytest.raises(OutputError, match="target: "):
        explain(feedback_model, examples, tmp_path, target="behavior")


def test_the_command_asks_a_part_of_the_runs_own_split(
    monkeypatch, feedback_model, examples, tmp_path, capsys
):
    split = split_log(tiny.small_log())
    run = Run(tmp_path, tiny.run_config(), feedback_model, split)
    monkeypatch.setattr(Run, "open", lambda _, rules: run)
    words = ["llm-influence", "explain", "--model", "m", "--out", str(tmp_path / "out")]
    words += ["--examples", "validation", "--target", "feedback", "--fidelity-masks", "0"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert f"{len(split.validation)} examples" in capsys.readouterr().out
    for more, message in ((["--log", "x"], "another log"), (["--examples", "train"], "'train'")):
        monkeypatch.setattr("sys.argv", [*words, *more])
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err


def test_the_command_does_not_write_what_a_person_rejected(monkeypatch, feedback_model, tmp_path):
    run = Run(tmp_path, tiny.run_config(), feedback_model, split_log(tiny.small_log()))
    monkeypatch.setattr(Run, "open", lambda _, rules: run)

    def explained_users(place, *more):
        words = ["llm-influence", "explain", "--model", "m", "--out", str(tmp_path / place)]
        monkeypatch.setattr("sys.argv", [*words, "--fidelity-masks", "0", *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return read_tables(tmp_path / place)

    first = explained_users("first")
    key = [first[name][0].as_py() for name in ("user_id", "method", "target", "target_id")]
    queue = tmp_path / "queue.csv"
    with queue.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "method", "target", "target_id", "decision", "note"])
        rows.writerow([*key, "reject", "no"])
    left = explained_users("second", "--review", str(queue))
    users = set(first["user_id"].to_pylist())
    assert set(left["user_id"].to_pylist()) == users - {key[0]}


def test_a_part_of_the_split_has_its_name(feedback_model):
    split = split_log(tiny.small_log())
    run = Run("m", tiny.run_config(), feedback_model, split)
    assert isinstance(run.examples("test"), EvaluationSet)
    with pytest.raises(ConfigError, match="'validation'"):
        run.examples("valid")


def test_one_user_that_cannot_be_explained_does_not_stop_the_others(
    monkeypatch, tmp_path, bert, log
):
    explainer = Explainer(bert, "recency")
    explain_one, bad = Explainer.explain, log.user_ids[4].as_py()

    def explain(self, histories, target):
        if any(history.user_id == bad for history in histories):
            raise ExplanationError("nothing is left", where="user", expected="an item", fix="add")
        return explain_one(self, histories, target)

    with monkeypatch.context() as patched:
        patched.setattr(Explainer, "explain", explain)
        with pytest.raises(ExplanationError, match="nothing is left"):
            explain_batch(explainer, log, tmp_path / "s", shard_size=3, progress=False, strict=True)
        result = explain_batch(explainer, log, tmp_path / "o", shard_size=3, progress=False)
    assert result.failed == 1
    (error,) = pq.read_table(tmp_path / "o" / "errors.parquet").to_pylist()
    assert (error["user_id"], error["error"]) == (bad, "ExplanationError")
    assert set(read_tables(tmp_path / "o")["user_id"].to_pylist()) == {
        user for user in log.user_ids.to_pylist() if user != bad
    }
    result = explain_batch(explainer, log, tmp_path / "o", shard_size=3, progress=False)
    assert result.failed == 0
    assert_same_rows(read_tables(tmp_path / "o"), to_arrow(explainer.explain(log)))


def test_cards_are_measured_on_a_sample_whatever_the_shards(monkeypatch, tmp_path, bert, log):
    monkeypatch.setattr("llm_influence.batch.plan.LEAST_CARDS", 3)
    measured = []
    for size in (2, 64):
        out = tmp_path / str(size)
        explain_batch(Explainer(bert, "recency"), log, out, shard_size=size, progress=False)
        table = read_tables(out)
        known = ~np.isnan(table["lds"].to_numpy())
        measured.append(set(table.filter(pa.array(known))["user_id"].to_pylist()))
        cards = json.loads((out / "manifest.json").read_text())["cards"]
        assert (cards["explanations"], cards["lds"]["measured"]) == (len(log), len(measured[-1]))
        assert cards["lds"]["lower_quartile"] <= cards["lds"]["median"]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 3


@pytest.mark.slow
def test_kills_at_random_moments_lose_double_and_change_nothing(tmp_path, bert, log, explained):
    """Also while the plan and a shard are written: moments are counted from the job's lock."""

    def lock_of(folder):
        try:
            return (folder / ".lock").read_text()
        except FileNotFoundError:
            return ""

    bert.save_pretrained(tmp_path / "model")
    out, draw = tmp_path / "out", np.random.default_rng(0)
    code = START + KILLED_JOB.replace("on_shard=wait", "on_shard=lambda path: print(path, flush=1)")
    words = [sys.executable, "-c", code, str(Path.cwd()), str(out), str(tmp_path / "model")]
    for _ in range(3):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and f'"pid": {process.pid},' not in lock_of(out):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.wait()
    explain_batch(Explainer(bert), log, out, shard_size=3, progress=False)
    assert_same_rows(read_tables(out), read_tables(explained.folder))
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
