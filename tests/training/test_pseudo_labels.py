"""Confident predictions as labels: which, how much they count, and where they never go."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import PseudoLabelsConfig
from llm_influence.data.splits import split_log
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training import pseudo_labels as module
from llm_influence.training.batches import WeightedLabels, WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.pseudo_labels import confident, feedback_of_events, weighted
from tests import tiny
from tests.training.runs import config_in, interrupted, largest_difference, weights

HEAD = {"weight": 1.0, "positive_from": 3.0}
FEEDBACK = FeedbackHeadConfig(**HEAD)


@pytest.fixture(scope="module")
def train():
    return split_log(tiny.small_log(users=20)).train


@pytest.fixture(scope="module")
def model(train):
    config = tiny.run_config(model={"feedback_head": HEAD}, rendering={"max_events": 3})
    model = InfluenceModel.build(config, train).eval()
    with torch.no_grad():
        model.feedback_head.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_every_event_is_predicted_from_as_much_of_its_past_as_fits(model, train):
    """Three events fit, and the windows of a user touch each other."""
    result = feedback_of_events(model, train, batch_size=7)
    assert result.shape == (train.num_events,)
    user = int(np.argmax(train.lengths))
    windows = [w for w in WindowDataset(train, model.encoder).windows if w.user == user]
    assert len(windows) > 1
    for window in windows:
        for place in range(window.start + (window.start > 0), window.stop + 1):
            past = train.at(user, place).keep(slice(window.start, None))
            event = int(train.offsets[user]) + place
            codes = [torch.tensor([int(c[event])]) for c in (train.items, train.behaviors)]
            with inference(model):
                states = model.query(collate(model.encoder.encode([past])))
                expected = float(model.feedback(states, *codes))
            assert result[event] == pytest.approx(expected, abs=1e-4)
    assert result.std() > 0.01


def test_only_sure_guesses_about_events_without_a_label_count_and_all_as_much_as_before(
    model, train
):
    real = np.full(train.num_events, np.nan, np.float32)
    real[:4] = [1, 5, 2, 4]
    odds = np.zeros(train.num_events)
    odds[2:8] = [9, 9, 2.3, 2.1, -2.3, -9]  # 0.9 is 2.197
    config = PseudoLabelsConfig(rounds=1, threshold=0.9, weight=0.25)
    guessed = confident(model, train, real, odds, config)
    assert np.flatnonzero(guessed).tolist() == [4, 6, 7]
    result = weighted(real, odds, guessed, FEEDBACK, config)
    liked = result.labels[[0, 1, 2, 3, 4, 6, 7]] >= FEEDBACK.positive_from
    assert liked.tolist() == [False, True, False, True, True, False, False]
    assert np.isnan(result.labels[[5, 8]]).all()
    assert result.weights[4] == pytest.approx(0.25 * result.weights[0])
    assert result.weights[[5, 8]].tolist() == [0, 0]
    assert result.weights.sum() == pytest.approx(4)


def test_behaviours_without_labels_get_no_pseudo_labels(model, train, monkeypatch):
    scale = replace(model.feedback_head.scale, behaviors=("cart",))
    monkeypatch.setattr(model.feedback_head, "scale", scale)
    nothing, sure = np.full(train.num_events, np.nan), np.full(train.num_events, 9.0)
    guessed = confident(model, train, nothing, sure, PseudoLabelsConfig(rounds=1))
    cart = train.code_names.behaviors.index("cart")
    assert (guessed == (train.behaviors == cart)).all()


def test_weights_scale_the_loss_and_guesses_are_seen_by_no_history(model, train):
    windows = list(WindowDataset(train, model.encoder))[:6]
    labels = np.where(np.isnan(train.values), 4.0, train.values).astype(np.float32)
    twice = WeightedLabels(train.values, np.full(train.num_events, 2.0, np.float32))
    guessed = WeightedLabels(labels, np.ones(train.num_events, np.float32))

    def inputs(pseudo=None):
        return WindowCollator(train, model.encoder, feedback=FEEDBACK, pseudo=pseudo)(windows)

    objective = NextEventObjective(model).eval()
    with inference(objective):
        plain, doubled = (objective(**inputs(p))["loss"] for p in (None, twice))
        heads = {name: tensor for name, tensor in inputs().items() if name != "feedback_labels"}
        without = objective(**heads)["loss"]
    torch.testing.assert_close(doubled - without, 2 * (plain - without), rtol=1e-4, atol=1e-5)
    one, other = inputs(), inputs(guessed)
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert torch.equal(one["added_ids"], other["added_ids"])
    assert other["feedback_labels"].isnan().sum() < one["feedback_labels"].isnan().sum()


def test_a_run_without_a_binary_feedback_head_is_refused():
    with pytest.raises(ValueError, match="feedback head of kind 'binary'"):
        RunConfig(pseudo_labels={"rounds": 1})
    head = {"feedback_head": {"weight": 1.0, "kind": "regression"}}
    with pytest.raises(ValueError, match="feedback head of kind 'binary'"):
        RunConfig(pseudo_labels={"rounds": 1}, model=head)


@pytest.mark.slow
def test_a_run_goes_through_its_rounds_and_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Half of the users have no values; the first round is broken off in its second epoch."""
    events = tiny.events_table(users=16)
    silent = pc.is_in(events["user_id"], pc.unique(events["user_id"])[8:])
    values = pc.if_else(silent, None, events["value"])
    events = events.set_column(events.column_names.index("value"), "value", values)
    sections = {
        "model": {"feedback_head": HEAD, "adapter": {"rank": 4, "dropout": 0.2}},
        "train": {"epochs": 2, "learning_rate": 1e-2},
        "pseudo_labels": {"rounds": 2, "threshold": 0.55},
    }
    configs = []
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        configs.append(config_in(tmp_path / name, events, **sections))
    starts, usual = [], module._round

    def noted(config, model, *rest):
        starts.append(model.item_head.project.weight.detach().clone())
        usual(config, model, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_round", noted)
        unbroken = finetune(configs[0])
    assert torch.equal(*starts)  # every model begins where the first one did
    rounds = json.loads((unbroken.folder / "metrics.json").read_text())["pseudo_labels"]
    assert len(rounds) == 2
    assert all(row["guessed"] > 0 and row["labels"] == rounds[0]["labels"] for row in rounds)

    with interrupted(module):
        finetune(configs[1])
    resumed = finetune(configs[1], resume=True)
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6
    again = json.loads((resumed.folder / "metrics.json").read_text())["pseudo_labels"]
    assert again == rounds

    # what is finished is not done again
    monkeypatch.setattr(module, "_round", lambda *_: pytest.fail("a round was done twice"))
    finetune(configs[1], resume=True)
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6


@pytest.mark.parametrize(
    ("earlier", "last", "kept"),
    [
        ((0.7, 0.6), 0.65, 0),
        ((0.6, 0.7), 0.7, 1),
        ((0.6, 0.7), 0.8, None),
        ((None, 0.1), 0.2, None),
    ],
)
def test_the_round_with_the_best_validation_is_the_model(tmp_path, model, earlier, last, kept):
    model = deepcopy(model)
    project = model.item_head.project.weight
    for number in range(2):
        with torch.no_grad():
            project.fill_(number)
        model.save_pretrained(tmp_path / module.PLACE / f"round_{number}", with_backbone=False)
    with torch.no_grad():
        project.fill_(9)
    rounds = [{"validation": {"feedback_auc": auc}} for auc in earlier]
    config = tiny.run_config(model={"feedback_head": HEAD}, evaluation={"choose_by": "auc"})
    module.keep_best(config, model, tmp_path, rounds, {"feedback_auc": last})
    assert project.unique().tolist() == [9 if kept is None else kept]
    assert [note["kept"] for note in rounds] == [kept == 0, kept == 1]
