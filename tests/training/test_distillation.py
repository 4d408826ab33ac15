"""Distillation from a teacher, and averaged weights of the last validations."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset, encoded_batch
from llm_influence.training.finetune import finetune
from llm_influence.training.item_losses import divergence
from llm_influence.training.objective import NextEventObjective, check_teacher
from tests import tiny
from tests.training.runs import NO_DROPOUT, config_in, largest_difference, weights


def windows_of(model, log):
    windows = WindowDataset(log, model.encoder)
    return WindowCollator(log, model.encoder)([windows[i] for i in range(4)])


def gradients(model, inputs, **options):
    objective = NextEventObjective(model, **options).train()
    objective.zero_grad()
    loss = objective(**inputs)["loss"]
    loss.backward()
    named = model.named_parameters()
    return float(loss.detach()), {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.fixture(scope="module")
def log():
    return tiny.small_log()


def test_a_model_that_is_its_own_teacher_has_no_divergence_and_no_gradient_of_it(log):
    model, same = (tiny.tiny_model("bert", "token", **NO_DROPOUT) for _ in range(2))
    inputs = windows_of(model, log)
    plain_loss, plain = gradients(model, inputs)
    loss, taught = gradients(model, inputs, teacher=same, distillation=3.0)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(taught[name], gradient, atol=2e-6, rtol=1e-4)


def test_the_divergence_from_a_teacher_is_added_with_its_weight(log):
    model, teacher = (
        tiny.tiny_model("bert", "token", noise=noise, **NO_DROPOUT) for noise in (0.05, 0.2)
    )
    inputs = windows_of(model, log)
    plain, _ = gradients(model, inputs)
    taught, _ = gradients(model, inputs, teacher=teacher, distillation=0.5)
    known = inputs["labels"] != IGNORE
    batch, places = encoded_batch(inputs), inputs["query_time"]
    logs = [m.training_logits(batch, places, known, None).log_softmax(1) for m in (teacher, model)]
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(dim=1).mean()
    assert taught - plain == pytest.approx(0.5 * float(expected.detach()), rel=1e-4)


def test_an_ensemble_teaches_its_average(log):
    models = [tiny.tiny_model("bert", "token", noise=noise) for noise in (0.05, 0.2)]
    inputs = windows_of(models[0], log)
    known, batch = inputs["labels"] != IGNORE, encoded_batch(inputs)
    one, two, both = (
        m.training_logits(batch, inputs["query_time"], known, None).log_softmax(1)
        for m in (*models, InfluenceModel.ensemble(models))
    )
    torch.testing.assert_close(both, (0.5 * one + 0.5 * two).log_softmax(dim=1))


def test_the_divergence_is_weighted_by_label():
    teacher, logits = torch.randn(3, 5).log_softmax(dim=1), torch.randn(3, 5)
    rows = [F.kl_div(logits[n].log_softmax(0), teacher[n].exp(), reduction="sum") for n in range(3)]
    mixed = divergence(teacher, logits, torch.tensor([2.0, 0.0, 1.0]))
    torch.testing.assert_close(mixed, 2 * rows[0] + rows[2])


def test_a_teacher_that_reads_other_batches_is_refused():
    model = tiny.tiny_model("bert", "token")
    with pytest.raises(ConfigError, match="styles"):
        check_teacher(tiny.tiny_model("bert", "text"), model)
    with pytest.raises(ConfigError, match="full item loss"):
        check_teacher(model, model, drawn=True)


TRAIN = {"batch_size": 4, "learning_rate": 1e-2, "seed": 0}


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """A run of three epochs whose checkpoints are all there, and the folder of its teacher."""
    folder = tmp_path_factory.mktemp("average")
    train = {**TRAIN, "epochs": 3, "average_last": 3}
    result = finetune(config_in(folder, model=NO_DROPOUT, train=train), measure_test=False)
    return folder / "run", result


def entry_of(folder):
    history = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["history"]
    return history, next(entry for entry in history if "averaged" in entry)


def test_the_average_is_that_of_the_last_checkpoints_and_used_only_if_better(epochs):
    folder, result = epochs
    history, entry = entry_of(folder)
    assert entry["averaged"] == 3
    best = max(e["eval_ndcg@10"] for e in history if "eval_ndcg@10" in e)
    assert entry["used"] is (entry["ndcg@10"] > best)
    assert result.validation["ndcg@10"] == pytest.approx(max(best, entry["ndcg@10"]))
    parts = [weights(place) for place in folder.glob("checkpoints/checkpoint-*")]
    assert len(parts) == 3
    own = {name: part for name, part in weights(folder).items() if "memory" not in name}
    mean = {name: sum(part[name] for part in parts) / 3 for name in own}
    difference = largest_difference(own, mean)
    assert (difference < 1e-5) is entry["used"]


def test_the_average_of_one_epoch_is_that_epoch(tmp_path):
    train = {**TRAIN, "epochs": 1, "average_last": 1}
    result = finetune(config_in(tmp_path, model=NO_DROPOUT, train=train), measure_test=False)
    _, entry = entry_of(tmp_path / "run")
    assert entry["ndcg@10"] == pytest.approx(result.validation["ndcg@10"])
    assert entry["used"] is False  # it is no better than itself
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert largest_difference(weights(tmp_path / "run"), weights(checkpoint)) == 0


def test_a_run_learns_from_the_folder_of_a_teacher(epochs, tmp_path):
    train = {**TRAIN, "epochs": 1, "teacher": str(epochs[0]), "distillation": 2.0}
    result = finetune(config_in(tmp_path, model=NO_DROPOUT, train=train), measure_test=False)
    assert math.isfinite(result.validation["ndcg@10"])
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    plain = json.loads((epochs[0] / "metrics.json").read_text(encoding="utf-8"))
    assert saved["trainable_parameters"] == plain["trainable_parameters"]  # the teacher is fixed
