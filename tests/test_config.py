"""One configuration for files, Python and the command line: options, help texts and refusals."""

import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest
import torch
import yaml
from pydantic import BaseModel

from llm_influence.config import analyses
from llm_influence.config.data import PlantedConfig, PlantedFraudConfig
from llm_influence.config.document import parse_yaml
from llm_influence.config.model import AdapterConfig, ItemHeadConfig, ScratchConfig
from llm_influence.config.rules import Effect, Rule, SharesTest, ValueTest
from llm_influence.config.run import RunConfig, SearchConfig, SearchedOption
from llm_influence.config.training import TrainConfig
from llm_influence.data.times import parse_moment
from llm_influence.errors import ConfigError
from llm_influence.training.base_trainer import wants_bf16


def options(section, name):
    """Dotted name, declaration and section class of every option; sections are walked through."""
    for field, info in section.model_fields.items():
        dotted = f"{name}.{field}"
        inner = [
            kind
            for kind in (info.annotation, *get_args(info.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not inner:
            yield dotted, info, section
        for kind in inner:
            yield from options(kind, dotted)


DOCUMENTS = [RunConfig, SearchConfig, PlantedConfig, PlantedFraudConfig, ScratchConfig]
PARTS = [SearchedOption, Rule, Effect, SharesTest, ValueTest]


@pytest.mark.parametrize("document", [*DOCUMENTS, *PARTS], ids=lambda kind: kind.__name__)
def test_every_option_says_in_a_sentence_what_it_does(document):
    for name, info, section in options(document, document.__name__):
        text = info.description or ""
        assert len(text) > 20, f"{name} has no help: {text!r}"
        assert text[0].isupper() or text.split(":")[0].split(",")[0].replace("_", "").islower()
        assert text.endswith("."), f"{name}: no full stop"
        nullable = type(None) in get_args(info.annotation)
        if nullable and info.default is None and section is not ValueTest:
            assert "null: " in text, f"{name}: the help does not say what null means"
        assert section.__doc__.splitlines()[0].endswith("."), f"{section}: no one-line docstring"


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "run.yaml"

    def write(text):
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_overrides_in_both_spellings_win_over_the_file(written):
    path = written("output: here\ntrain: {epochs: 2, seed: 3, batch_size: 8}\n")
    config = RunConfig.load(path, ["--train.epochs", "4", "--train.batch_size=16", "--output=a=b"])
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (4, 16, 3)
    assert config.output == "a=b"
    assert config.rendering == RunConfig().rendering


def test_overrides_reach_sections_that_the_file_does_not_have():
    config = RunConfig.load(
        None, ["--model.adapter.rank", "2", "--data.split.kind=global_time", "--data.items=i.csv"]
    )
    assert config.model.adapter.rank == 2
    assert config.data.split.kind == "global_time"
    assert config.data.items == "i.csv"


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001"])
def test_numbers_that_yaml_reads_as_text_are_numbers(written, number):
    path = written(f"train: {{learning_rate: {number}}}\n")
    assert RunConfig.load(path).train.learning_rate == 0.0001
    assert RunConfig.load(None, ["--train.learning_rate", number]).train.learning_rate == 0.0001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", r"unknown option 'train.epoch'.*did you mean 'epochs'"),
        ("trian: {epochs: 3}", r"unknown option 'trian'.*did you mean 'train'"),
        ("model: {adapter: {rnk: 3}}", r"'model.adapter.rnk'.*did you mean 'rank'"),
        ("model: {adapter: {kind: ia3, rank: 3}}", r"Expected no rank: .*'ia3' does not read it"),
        ("model: {adapter: {kind: full, width: 3}}", r"no width: .*'full' does not read it"),
        ("model: {adapter: {kind: adalora, initial_rank: 16}}", r"initial_rank \(16\) above rank"),
        (
            "model: {adapter: {kind: adalora, prune_from: 0.5, prune_until: 0.5}}",
            r"prune_from 0.5 before prune_until",
        ),
        ("model: {backbone: gru}", r"Expected adapter.kind 'full', not 'lora': backbone 'gru'"),
        (
            "model: {backbone: gru, layers: 2, adapter: {kind: full}}",
            r"reads recurrent.layers instead",
        ),
        (
            "model: {backbone: recurrence, recurrent: {layers: 2}, adapter: {kind: full}}",
            r"recurrent.layers 1: backbone 'recurrence' has one layer",
        ),
        (
            "model: {backbone: lstm, residual_dropout: 0.1, adapter: {kind: full}}",
            r"residual_dropout 0, or recurrent.words",
        ),
        ("model: {recurrent: {width: 64}}", r"no recurrent: backbone 'minilm' does not read it"),
        ("train: {epochs: many}", r"train.epochs is 'many'.*valid number"),
        ("train: {epochs: 0}", r"train.epochs is 0.*greater than 0"),
        ("rendering: {style: words}", r"rendering.style is 'words'.*'token' or 'text'"),
        ("train: 3", r"train is 3"),
        ("[train, model]", r"the top level is a list"),
        ("train: {", r"not YAML.*line 1"),
        ("train: {epochs: 2, epochs: 3}", r"key 'epochs' stands twice, line 1"),
        ("output: a\ntrain: {}\noutput: b", r"key 'output' stands twice, line 3"),
        ("rules: {name: r}", r"rules: a dict\. Expected a list of rules\. Fix: [^,]*each rule\.$"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(written, text, message):
    path = written(text)
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml[:,] .*{message}"):
        RunConfig.load(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.epoch", "3"], "'train.epoch'.*did you mean 'epochs'"),
        (["--train.epochs"], "cannot read '--train.epochs'"),
        (["train.epochs", "3"], "cannot read 'train.epochs'"),
        (["--train.epochs.more", "3"], r"train.epochs is \{'more': 3\}"),
        (["--output.name", "x"], r"output is \{'name': 'x'\}"),
        (["--train.epochs", "4", "left over"], "cannot read 'left over'"),
    ],
)
def test_a_wrong_override_is_refused(words, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        RunConfig.load(None, words)


def test_an_override_that_is_no_yaml_is_refused():
    with pytest.raises(ConfigError, match="report_to"):
        RunConfig.load(None, ["--train.report_to", "[wandb"])


def test_an_override_below_a_value_of_the_file_is_refused(written):
    with pytest.raises(ConfigError, match="'output' is a value, not a section"):
        RunConfig.load(written("output: here"), ["--output.name", "x"])


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read \(No such file"):
        RunConfig.load(tmp_path / "absent.yaml")


def test_an_unknown_option_of_a_section_that_may_be_left_out_is_named():
    tree = {"drift": {"dat": "2025-07-01"}}
    with pytest.raises(ConfigError, match=r"unknown option 'drift\.dat'.*did you mean 'date'"):
        PlantedConfig.of(tree, "planted.yaml")


def test_yaml_may_merge_an_anchor_and_set_its_keys_again():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}"
    assert parse_yaml(text, "x")["c"] == {"x": 3, "y": 4}


def test_an_empty_file_is_the_defaults(written):
    assert RunConfig.load(written("")) == RunConfig()


def test_a_saved_configuration_comes_back_whole(tmp_path):
    config = RunConfig.load(
        None, ["--data.columns", "{user_id: käufer}", "--train.warmup=0.25", "--model.layers=2"]
    )
    path = tmp_path / "run.yaml"
    config.save(path)
    assert RunConfig.load(path) == config
    assert set(yaml.safe_load(path.read_text())) == set(RunConfig.model_fields)


def test_a_configuration_never_changes_once_read():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.epochs = 9


@pytest.mark.parametrize("able", [True, False])
def test_precision_auto_asks_the_chip_and_a_named_one_does_not(monkeypatch, able):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    assert wants_bf16(TrainConfig(precision="auto")) is able
    assert wants_bf16(TrainConfig(precision="bf16")) is True
    assert wants_bf16(TrainConfig(precision="fp32")) is False


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "frozen"}, "frozen"),
        ({"kind": "bottleneck", "width": 8}, "bottleneck, width 8"),
        ({"kind": "ia3", "targets": ["key", "value"]}, "ia3, targets key, value"),
        ({"rank": 4, "alpha": 8}, "lora, rank 4, alpha 8, dropout 0"),
        (
            {"kind": "adalora", "rank": 6},
            "adalora, rank 6, initial rank 9, alpha 32, dropout 0, prune from 0.1, "
            "prune until 0.7, prune every 0.01, orthogonality 0.1",
        ),
    ],
)
def test_an_adapter_is_described_by_what_it_reads(options, line):
    assert AdapterConfig.model_validate(options).describe() == line


def test_a_large_catalogue_has_its_own_loss_and_residuals_unless_they_are_chosen():
    auto = ItemHeadConfig()
    assert [auto.loss_for(items) for items in (20_000, 20_001)] == ["full", "sampled"]
    assert [auto.residual_width(items, 384) for items in (20_000, 20_001)] == [384, 32]
    chosen = ItemHeadConfig(loss="gbce", residual_rank=500)
    assert chosen.loss_for(10) == chosen.loss_for(10**6) == "gbce"
    assert chosen.residual_width(10**6, 384) == 384


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_time_in_yaml_needs_no_quotes(written, quote):
    day = f"{quote}2017-11-27T05:00:00Z{quote}"
    path = written(f"data: {{split: {{kind: global_time, validation_from: {day}}}}}")
    cut = RunConfig.load(path).data.split.validation_from
    assert parse_moment(cut, "validation_from") == 1_511_758_800


def test_a_time_without_a_zone_is_still_refused_where_it_is_read():
    config = RunConfig.load(None, ["--data.split.validation_from", "2017-11-27"])
    with pytest.raises(ConfigError, match="with a zone"):
        parse_moment(config.data.split.validation_from, "validation_from")


def test_options_of_analyses_have_help_and_a_flag_where_they_repeat():
    for name in ("FactorOptions", "ChannelOptions", "AuditOptions", "DynamicsOptions"):
        for field in fields(getattr(analyses, name)):
            assert field.metadata["help"], f"{name}.{field.name}"
            assert field.metadata.get("flag", "--").startswith("--")
            assert ("flag" in field.metadata) == field.type.startswith("tuple")


def test_options_of_analyses_import_nothing_heavy():
    heavy = {"numpy", "scipy", "sklearn", "duckdb", "pyarrow", "torch"}
    code = f"import sys, llm_influence.config.analyses; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
