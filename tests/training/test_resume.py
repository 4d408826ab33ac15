"""What a run still knows after it was broken off."""

import shutil
from pathlib import Path

import pytest
from transformers import TrainerCallback

from llm_influence.training import finetune as module
from llm_influence.training.finetune import finetune
from tests.training.runs import config_in, largest_difference, weights

STILL = {"learning_rate": 1e-9, "item_learning_rate": 1e-9}  # no epoch is better than the first


class BrokenOffError(Exception):
    pass


class BreakOff(TrainerCallback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_step_begin(self, args, state, control, **_):
        if state.epoch > self.epoch:
            raise BrokenOffError


def broken_after(epoch: int, config, monkeypatch) -> Path:
    class Breaking(module.InfluenceTrainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.add_callback(BreakOff(epoch))

    with monkeypatch.context() as patch:
        patch.setattr(module, "InfluenceTrainer", Breaking)
        with pytest.raises(BrokenOffError):
            finetune(config)
    return Path(config.output) / "checkpoints"


def epochs_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def test_patience_counts_on_from_before_the_break(tmp_path, monkeypatch):
    train = {"epochs": 6, "patience": 2, **STILL}
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = config_in(tmp_path / "unbroken", train=train)
    finetune(unbroken)
    broken = config_in(tmp_path / "broken", train=train)
    checkpoints = broken_after(2, broken, monkeypatch)  # one epoch without a better one
    finetune(broken, resume=True)
    first, last = epochs_of(Path(unbroken.output) / "checkpoints")
    assert last == 3 * first  # the best epoch was the first, and two more were waited for
    assert epochs_of(checkpoints) == [first, last]


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path, monkeypatch):
    train = {"epochs": 2, "learning_rate": 1e-2}
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = finetune(config_in(tmp_path / "unbroken", train=train))
    broken = config_in(tmp_path / "broken", train=train)
    checkpoints = broken_after(1, broken, monkeypatch)
    (whole,) = checkpoints.iterdir()
    half = checkpoints / f"checkpoint-{2 * int(whole.name.split('-')[1])}"
    half.mkdir()
    shutil.copy(whole / "heads.safetensors", half)
    resumed = finetune(broken, resume=True)
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6
