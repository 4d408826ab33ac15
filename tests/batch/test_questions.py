"""Examples explained with their answers beside them."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm_influence import cli
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Behavior, Feedback, Item
from llm_influence.batch.explain import explain_examples, outcomes
from llm_influence.data.splits import EvaluationSet, split_log
from llm_influence.errors import ConfigError, OutputError
from llm_influence.influence.influence import from_arrow
from llm_influence.influence.table_files import read_tables
from llm_influence.run import Run
from tests import tiny
from tests.batch.test_batch import assert_same_rows

HEAD = {"weight": 1.0, "kind": "binary", "positive_from": 3.0}


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model(feedback_head=HEAD)


@pytest.fixture(scope="module")
def examples():
    return split_log(tiny.small_log()).test


def explained(model, examples, folder, **options):
    options = {"shard_size": 5, "progress": False} | options
    explain_examples(Explainer(model, fidelity_masks=0), examples, folder, **options)
    return read_tables(folder)


@pytest.mark.parametrize("target", ["item", "behavior", "feedback"])
def test_every_question_is_explained_with_what_came_as_its_target(
    model, examples, tmp_path, target
):
    found = from_arrow(explained(model, examples, tmp_path, target=target))
    rows = pq.read_table(tmp_path / "outcomes.parquet").to_pylist()
    assert len(found) == len(rows) == len(examples)
    explainer = Explainer(model, fidelity_masks=0)
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
        np.testing.assert_allclose(found[number].scores, alone.scores, rtol=1e-3, atol=1e-5)
        assert came["before"] == len(alone.events) + alone.quality.left_out


def test_outcomes_are_the_events_that_came(examples):
    table, whole = outcomes(examples), examples.log.to_table().to_pylist()
    for row, place in zip(table.to_pylist(), examples.events, strict=True):
        event = whole[place]
        assert all(row[name] == event[name] for name in ("user_id", "item_id", "behavior"))
        assert row["value"] == event["value"]
    assert table["label"].null_count == len(table)  # this log has none


def test_a_broken_off_job_goes_on_and_other_questions_are_refused(model, examples, tmp_path):
    whole = explained(model, examples, tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    assert_same_rows(explained(model, examples, tmp_path), whole)
    fewer = examples.select(np.arange(len(examples)) > 0)
    with pytest.raises(OutputError, match="examples: "):
        explained(model, fewer, tmp_path)
    with pytest.raises(OutputError, match="target: "):
        explained(model, examples, tmp_path, target="behavior")


def test_the_command_asks_a_part_of_the_runs_own_split(
    monkeypatch, model, examples, tmp_path, capsys
):
    split = split_log(tiny.small_log())
    run = Run(tmp_path, tiny.run_config(), model, split)
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


def test_the_command_does_not_write_what_a_person_rejected(monkeypatch, model, tmp_path):
    run = Run(tmp_path, tiny.run_config(), model, split_log(tiny.small_log()))
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


def test_a_part_of_the_split_has_its_name(model):
    split = split_log(tiny.small_log())
    run = Run("m", tiny.run_config(), model, split)
    assert isinstance(run.examples("test"), EvaluationSet)
    with pytest.raises(ConfigError, match="'validation'"):
        run.examples("valid")
