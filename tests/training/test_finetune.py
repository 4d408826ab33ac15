"""Whole runs: what they write, what they learn, and how they resume."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_influence.config.model import RECURRENT
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.public import open_data
from llm_influence.errors import ConfigError, OutputError
from llm_influence.evaluation.evaluate import by_head
from llm_influence.evaluation.metrics import ModelRecommender, evaluate
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training import finetune as module
from llm_influence.training.augmentation import Negatives
from llm_influence.training.finetune import finetune
from llm_influence.training.trainer import training_arguments
from tests import tiny
from tests.training.runs import (
    NO_DROPOUT,
    InterruptAfter,
    config_in,
    interrupted,
    largest_difference,
    walk_events,
    weights,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune.py"
TRAIN = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module", params=[("bert", "token"), ("gpt2", "text"), *tiny.CELLS])
def run(request, tmp_path_factory):
    """A finished run of two epochs."""
    kind, style = request.param
    config = config_in(tmp_path_factory.mktemp("run"), kind=kind, style=style, train=TRAIN)
    return config, finetune(config)


# --- what a run leaves ---------------------------------------------------------------------


def test_metrics_of_a_run_are_those_of_the_folder_it_wrote(run):
    config, result = run
    split = split_log(open_data(config.data), config.data.split)
    loaded = ModelRecommender(InfluenceModel.from_pretrained(result.folder))
    written = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    for name, rows in (("validation", split.validation), ("test", split.test)):
        fresh = evaluate(loaded, rows, config.evaluation)[0]
        measured = getattr(result, name)
        assert written[name] == by_head(measured)
        assert {key: measured[key] for key in fresh} == pytest.approx(fresh, abs=1e-6)
        assert written[name]["behaviors"].keys() == {"accuracy", "macro_f1", "log_loss"}
    assert written["protocol"]["test"]["rows"] == len(split.test)
    assert written["protocol"]["data"] == config.data.source
    assert result.seconds > 0
    shift = written["removal_shift"]
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    if shift["users"]:  # in style text fewer than six events fit the small context
        assert 0 <= shift["opposed"] <= 1
        assert f"shift: {shift['shift']:.2f}, on {shift['users']} validation users" in card
    else:
        assert shift["shift"] is None
        assert "Shift by removal" not in card


def test_a_run_in_bf16_is_measured_in_full_precision(tmp_path):
    """In bf16 scores of items tie, and a loaded model predicts in float32."""
    train = {**TRAIN, "epochs": 1, "batch_size": 32, "precision": "bf16"}
    config = config_in(tmp_path, tiny.events_table(users=80), train=train)
    result = finetune(config)
    split = split_log(open_data(config.data), config.data.split)
    loaded = ModelRecommender(InfluenceModel.from_pretrained(result.folder))
    fresh = evaluate(loaded, split.test, config.evaluation)[0]
    assert {key: result.test[key] for key in fresh} == pytest.approx(fresh)


def test_a_run_keeps_the_epoch_that_did_best_on_validation(run):
    _, result = run
    history = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))["history"]
    validations = [step["eval_ndcg@10"] for step in history if "eval_ndcg@10" in step]
    assert len(validations) == 2
    assert result.validation["ndcg@10"] == pytest.approx(max(validations))


def test_a_run_writes_down_its_configuration_and_its_split(run):
    config, result = run
    assert RunConfig.load(result.folder / "run.yaml") == config
    split = split_log(open_data(config.data), config.data.split)
    saved = Split.load(result.folder / "split")
    assert saved.parts().tolist() == split.parts().tolist()
    assert saved.description == split.description


def test_a_run_trains_the_adapter_and_every_head(run):
    config, result = run
    split = split_log(open_data(config.data), config.data.split)
    untrained = InfluenceModel.build(config, split.train)
    untrained.save_pretrained(result.folder.parent / "untrained", with_backbone=False)
    before, after = weights(result.folder.parent / "untrained"), weights(result.folder)
    factors = [name for name in after if "lora_B" in name]
    assert factors or config.model.backbone in RECURRENT
    assert all(after[name].abs().max() > 0 for name in factors)
    unmoved = {name for name in after if (after[name] == before[name]).all()}
    assert unmoved == {
        "embeddings.centre",
        "embeddings.words",
    }  # never trained


def test_a_folder_that_holds_a_run_is_refused_without_resume(run):
    config, result = run
    before = weights(result.folder)
    with pytest.raises(OutputError, match=r"holds a run already.*--resume"):
        finetune(config)
    again = finetune(config, resume=True)
    assert again.test == pytest.approx(result.test)
    assert largest_difference(weights(result.folder), before) == 0


# --- what a run learns ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "style"),
    [
        pytest.param("bert", "token", marks=pytest.mark.slow),
        pytest.param("llama", "text", marks=pytest.mark.slow),
        pytest.param("gru", "token", marks=pytest.mark.slow),
        ("recurrence", "token"),
    ],
)
def test_a_run_learns_what_always_comes_next(tmp_path, kind, style):
    rendering = {"template": "item" if style == "token" else "titles"}
    rates = {"learning_rate": 5e-3, "item_learning_rate": 5e-3}
    train = {"epochs": 30, "batch_size": 8, "patience": 30, **rates}
    options = {"rank": 16, "dropout": 0.0}  # a random backbone has much to learn
    model = {} if kind in RECURRENT else {"adapter": options}
    sections = {"rendering": rendering, "train": train, "model": model}
    config = config_in(tmp_path, walk_events(users=60), kind=kind, style=style, **sections)
    assert finetune(config).test["mrr"] > 0.9


@pytest.mark.slow
def test_another_seed_gives_another_model_that_does_about_as_well(tmp_path):
    rates = {"learning_rate": 5e-3, "item_learning_rate": 5e-3}
    result = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        config = config_in(
            tmp_path / str(seed),
            walk_events(users=60),
            rendering={"template": "item"},
            train={"epochs": 4, "batch_size": 8, "seed": seed, **rates},
        )
        result.append(finetune(config))
    one, other = result
    assert largest_difference(weights(one.folder), weights(other.folder)) > 1e-2
    assert one.test != other.test
    assert min(one.test["mrr"], other.test["mrr"]) > 0.5  # by chance: 0.13
    assert one.test["mrr"] == pytest.approx(other.test["mrr"], abs=0.2)


# --- how a step is shared ------------------------------------------------------------------


def test_accumulating_a_step_from_micro_batches_gives_the_same_model(tmp_path):
    result = []
    for accumulation in (1, 4):
        folder = tmp_path / str(accumulation)
        folder.mkdir()
        # in fp32: bf16 rounds each micro-batch by itself
        train = {**TRAIN, "epochs": 1, "accumulation": accumulation, "precision": "fp32"}
        config = config_in(folder, train=train, model=NO_DROPOUT)
        result.append(weights(finetune(config).folder))
    assert largest_difference(*result) < 1e-4


def test_all_micro_batches_of_a_step_draw_the_same_items_and_the_next_step_others(
    tmp_path, monkeypatch
):
    calls, draw = [], Negatives.draw

    def noting(self, step):
        calls.append(step)
        return draw(self, step)

    monkeypatch.setattr(Negatives, "draw", noting)
    model = {**NO_DROPOUT, "item_head": {"loss": "sampled", "negatives": 8}}
    finetune(config_in(tmp_path, train={**TRAIN, "epochs": 1, "accumulation": 2}, model=model))
    assert calls == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("batch_size", "accumulation", "fitting"), [(3, 1, 2), (4, 3, 6)])
def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can(
    tmp_path, batch_size, accumulation, fitting
):
    config = tiny.run_config(train={"batch_size": batch_size, "accumulation": accumulation})
    with pytest.raises(ConfigError, match=f"2 processes.*set train.batch_size to {fitting}"):
        training_arguments(config, tmp_path, world_size=2)
    fine = tiny.run_config(train={"batch_size": fitting, "accumulation": accumulation})
    arguments = training_arguments(fine, tmp_path, world_size=2)
    shared = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * 2
    assert shared == fitting


def launched(config: RunConfig, folder: Path, *program: str) -> str:
    """The output of a run under torchrun on two processes, which must exit with status 0."""
    config.save(folder / "run.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc_per_node", "2", *program, "--config", str(folder / "run.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*launch, *command], **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=300)
        finally:
            process.terminate()  # the launcher then ends its workers
    assert process.returncode == 0, errors[-3000:]
    assert "process group has NOT been destroyed" not in errors
    return printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [["-m", "llm_influence.cli", "finetune"], [str(SCRIPT)]], ids=["command", "script"]
)
def test_two_processes_exit_cleanly_and_print_once(tmp_path, program):
    sizes = {"train": {"epochs": 1, "batch_size": 8}, "rendering": {"template": "item"}}
    config = config_in(tmp_path, tiny.events_table(users=4), **sizes)
    assert launched(config, tmp_path, *program).count("model folder:") == 1


@pytest.mark.slow
def test_two_processes_come_to_the_metrics_of_one(tmp_path):
    """13 users, so that one process has to rank a user too many; 14 windows, so that all fit.

    Every way of learning is on. What is drawn is the same in the same epoch, whichever process
    reads it, and the negatives of a view are also those that the other process reads.
    """
    events = tiny.events_table(users=13)
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        # in bf16 the padding of a batch is felt: one process pads two windows, two pad none
        steps = {"batch_size": 2, "learning_rate": 1e-3, "precision": "fp32"}
        train = {
            **TRAIN,
            **steps,
            "event_dropout": 0.9,
            "augmentation": {"crop": 0.3, "mask": 0.3, "reorder": 0.5},
            "contrastive": {"weight": 0.5},
            "adversarial": {"epsilon": 0.5},
        }
        sections = {"rendering": {"max_events": 7}, "pretraining": {"epochs": 1}}
        config = config_in(folder, events, train=train, model=NO_DROPOUT, **sections)
        if processes == 1:
            finetune(config)
        else:
            printed = launched(config, folder, str(SCRIPT))
            assert printed.count("model folder:") == 1  # two processes, not two runs
        written = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
        results.append((written, weights(folder / "run")))
    (one, weights_of_one), (two, weights_of_two) = results
    assert 0 < one["test"]["items"]["hr@10"] < 1
    assert one["history"][-1]["step"] == two["history"][-1]["step"] == 14
    assert two["pretraining"]["loss"] == pytest.approx(one["pretraining"]["loss"], abs=1e-4)
    for name in ("validation", "test"):
        for head, metrics in one[name].items():
            assert two[name][head] == pytest.approx(metrics, abs=1e-6)
    assert largest_difference(weights_of_one, weights_of_two) < 1e-5


# --- how a run resumes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "style", "loss"),
    [("bert", "token", "sampled"), ("gpt2", "text", "full"), ("gru", "token", "full")],
)
def test_an_interrupted_run_resumes_to_the_weights_of_an_unbroken_one(tmp_path, kind, style, loss):
    """Dropout is on and items are drawn: all that is random has to come back too."""
    head = {"loss": loss, "negatives": 8}
    model = {"dropout": 0.2, "item_head": head}
    if kind != "gru":
        model["adapter"] = {"rank": 4, "dropout": 0.2}
    configs = []
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        configs.append(config_in(tmp_path / name, kind=kind, style=style, train=TRAIN, model=model))
    unbroken = finetune(configs[0])

    with interrupted(module):
        finetune(configs[1])
    folder = Path(configs[1].output)
    assert not (folder / "model.json").exists()
    resumed = finetune(configs[1], resume=True)

    assert largest_difference(weights(unbroken.folder), weights(resumed.folder)) < 1e-6
    assert resumed.test == pytest.approx(unbroken.test)
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    same = unbroken.folder / "checkpoints" / last.name
    assert largest_difference(weights(same), weights(last)) < 1e-6


# --- resume --------------------------------------------------------------------------------------


STILL = {"learning_rate": 1e-9, "item_learning_rate": 1e-9}  # no epoch is better than the first


def broken_after(epoch: int, config) -> Path:
    with interrupted(module, InterruptAfter(epoch)):
        finetune(config)
    return Path(config.output) / "checkpoints"


def epochs_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


@pytest.mark.slow
def test_patience_counts_the_epochs_before_a_resume(tmp_path):
    train = {"epochs": 6, "patience": 2, **STILL}
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = config_in(tmp_path / "unbroken", train=train)
    finetune(unbroken)
    broken = config_in(tmp_path / "broken", train=train)
    checkpoints = broken_after(2, broken)  # one epoch without a better one
    finetune(broken, resume=True)
    first, last = epochs_of(Path(unbroken.output) / "checkpoints")
    assert last == 3 * first  # the best epoch was the first, and two more were waited for
    assert epochs_of(checkpoints) == [first, last]


def test_an_incomplete_checkpoint_is_skipped(tmp_path):
    train = {"epochs": 2, "learning_rate": 1e-2}
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = finetune(config_in(tmp_path / "unbroken", train=train))
    broken = config_in(tmp_path / "broken", train=train)
    checkpoints = broken_after(1, broken)
    (whole,) = checkpoints.iterdir()
    half = checkpoints / f"checkpoint-{2 * int(whole.name.split('-')[1])}"
    half.mkdir()
    shutil.copy(whole / "heads.safetensors", half)
    resumed = finetune(broken, resume=True)
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6
