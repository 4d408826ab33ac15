"""Validations inside an epoch."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

from llm_influence.data.splits import split_log
from llm_influence.datasets.public import open_data
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training import finetune as module
from llm_influence.training.finetune import finetune
from llm_influence.training.trainer import InfluenceTrainer, InnerValidations, training_arguments
from tests import tiny
from tests.training.runs import config_in, largest_difference, weights

EVENTS = tiny.events_table(users=16)


def query_time(validations, steps, last=10_000):
    callback, result = InnerValidations(validations, steps), []
    for step in range(1, 2 * steps + 1):
        control = TrainerControl()
        callback.on_step_end(None, TrainerState(global_step=step, max_steps=last), control)
        assert control.should_save == control.should_evaluate
        if control.should_evaluate:
            result.append(step)
    return result


def test_validations_are_evenly_spaced_in_every_epoch_and_its_end_is_left_to_the_trainer():
    assert query_time(1, 10) == []
    assert query_time(4, 100) == [25, 50, 75, 125, 150, 175]
    assert query_time(9, 3) == [1, 2, 4, 5]  # more than there are steps: after each


def test_the_end_of_a_run_in_the_middle_of_an_epoch_is_validated_once():
    assert query_time(2, 10, last=15) == [5]


TRAIN = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "validations_per_epoch": 2}


@pytest.fixture
def ndcg(monkeypatch):
    """Made-up values of the metric, one a validation."""

    def arrange(*values):
        waiting = iter(values)
        made_up = lambda *_: {"ndcg@10": next(waiting, 0.0)}  # noqa: E731
        monkeypatch.setattr("llm_influence.training.trainer.head_metrics", made_up)

    return arrange


def history_of(folder):
    history = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["history"]
    return [(e["epoch"], e["eval_ndcg@10"]) for e in history if "eval_ndcg@10" in e]


def test_a_run_keeps_the_best_of_all_its_validations(tmp_path, ndcg):
    ndcg(0.1, 0.2, 0.9, 0.3)
    result = finetune(config_in(tmp_path, EVENTS, train=TRAIN))
    assert history_of(result.folder) == [(0.5, 0.1), (1.0, 0.2), (1.5, 0.9), (2.0, 0.3)]
    best = weights(result.folder / "checkpoints" / "checkpoint-6")
    last = weights(result.folder / "checkpoints" / "checkpoint-8")
    assert largest_difference(weights(result.folder), best) < 1e-7
    assert largest_difference(best, last) > 1e-4


def test_patience_counts_validations(tmp_path, ndcg):
    ndcg(0.9, 0.3, 0.2)
    result = finetune(config_in(tmp_path, EVENTS, train={**TRAIN, "patience": 2}))
    assert history_of(result.folder)[-1][0] == 1.5


class KilledError(Exception):
    pass


class KilledAfterSevenSteps(InfluenceTrainer):
    def training_step(self, *arguments, **options):
        if self.state.global_step == 7:
            raise KilledError
        return super().training_step(*arguments, **options)


@pytest.mark.slow
def test_a_run_resumes_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """The rest of the epoch's windows come in the epoch's own order, with its own draws."""
    train = {**TRAIN, "event_dropout": 0.5}
    folders = []
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        config = config_in(tmp_path / name, EVENTS, train=train)
        if name == "broken":
            with monkeypatch.context() as patch:
                patch.setattr(module, "InfluenceTrainer", KilledAfterSevenSteps)
                with pytest.raises(KilledError):
                    finetune(config)
        finetune(config, resume=True)
        folders.append(Path(config.output) / "checkpoints" / "checkpoint-8")
    assert largest_difference(*map(weights, folders)) < 1e-6


def test_a_resumed_epoch_has_its_own_order(tmp_path):
    """Where processes share a sampler, accelerate does not tell it (the test above has one)."""
    config = config_in(tmp_path, EVENTS)
    split = split_log(open_data(config.data), config.data.split)
    model = InfluenceModel.build(config, split.train)
    trainer = InfluenceTrainer(config, model, split, training_arguments(config, tmp_path, 1))
    trainer.callback_handler.on_epoch_begin(trainer.args, TrainerState(epoch=1.5), TrainerControl())
    sampler = trainer._get_train_sampler()
    result = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) != result
    sampler.set_epoch(1)
    assert list(sampler) == result
