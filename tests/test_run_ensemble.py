"""Several runs as one run folder that every command opens."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.prediction import ensemble as benchmark
from llm_influence.cli import app
from llm_influence.errors import ConfigError, OutputError
from llm_influence.modeling.model import Ensemble
from llm_influence.run import Run
from llm_influence.training.finetune import finetune
from tests import tiny
from tests.training.runs import config_in


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two finished runs of different backbones on one split."""
    made = []
    for kind in ("bert", "gru"):
        folder = tmp_path_factory.mktemp(kind)
        finetune(config_in(folder, kind=kind, train={"average_last": 1}))
        made.append(str(folder / "run"))
    return made


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("ensemble") / "run"
    return out, CliRunner().invoke(app, ["ensemble", *folders, "--out", str(out)])


def test_the_command_writes_a_run_and_says_how_the_weights_were_chosen(made):
    out, result = made
    assert result.exit_code == 0, result.output
    assert "chosen by the likelihood of the validation items" in result.output
    run = Run.open(out)
    assert isinstance(run.model, Ensemble)
    assert sum(run.model.weights) == pytest.approx(1)


def test_evaluate_opens_it(made):
    result = CliRunner().invoke(app, ["evaluate", "--model", str(made[0]), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["items"][0]["system"] == "llm_influence"


def test_a_used_folder_and_another_split_are_refused(made, folders, tmp_path):
    with pytest.raises(OutputError, match="holds a run already"):
        Run.ensemble(folders, made[0])
    finetune(config_in(tmp_path, tiny.events_table(seed=3)))
    with pytest.raises(ConfigError, match="another split"):
        Run.ensemble([folders[0], tmp_path / "run"], tmp_path / "out")


def test_the_benchmark_writes_its_figures(folders, tmp_path):
    arguments = ["--runs", *folders, "--distilled", folders[0]]
    arguments += ["--output", str(tmp_path / "e.json"), "--work", str(tmp_path)]
    benchmark.main(benchmark.PARSER.parse_args(arguments))
    figures = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))["figures"]
    assert {"ensemble_ndcg10", "distilled_ndcg10", "training_seconds"} <= set(figures)
