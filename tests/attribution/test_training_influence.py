"""Influence of training users: exact properties of the scores, and the file of gradients."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_influence.attribution.target import Contrast, Item, Slate, bind
from llm_influence.attribution.training_influence import (
    TrainingGradients,
    TrainingInfluence,
    target_gradient,
    training_influence,
)
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError, OutputError
from llm_influence.modeling.model import InfluenceModel
from tests.tiny import events_table, items_table, moved, run_config, tiny_model


@pytest.fixture(scope="module")
def log() -> BehaviorLog:
    """Twelve users, and a copy of the user with most events."""
    events = events_table()
    copy = events.filter(pa.compute.equal(events["user_id"], "u7"))
    copy = copy.set_column(0, "user_id", pa.array(["copy"] * len(copy)))
    return BehaviorLog.read(pa.concat_tables([events, copy]), items=items_table())


@pytest.fixture(scope="module")
def model(log: BehaviorLog) -> InfluenceModel:
    return moved(InfluenceModel.build(run_config(), log))


@pytest.fixture(scope="module")
def gradients(model: InfluenceModel, log: BehaviorLog) -> TrainingGradients:
    return TrainingGradients.compute(model, log)


def test_scores_are_additive_over_the_logits(model, log, gradients) -> None:
    """A difference of two contrasts is the contrast of the rest: the score is linear."""
    history = log["u5"]

    def scores(chosen: str, other: str) -> np.ndarray:
        target = Contrast(chosen, other)
        return training_influence(model, history, target, log=log, gradients=gradients).scores

    whole = scores("i1", "i2") + scores("i2", "i3")
    np.testing.assert_allclose(whole, scores("i1", "i3"), atol=1e-5 * np.abs(whole).max())


def test_copies_score_alike_and_most_own_continuations_are_on_top(model, log, gradients) -> None:
    own_first = []
    for own in log:
        target, before = Item(own.item_ids()[-1]), own.keep(slice(None, -1))
        result = training_influence(model, before, target, log=log, gradients=gradients)
        score = dict(zip(result.users, result.scores, strict=True))
        assert score["copy"] == pytest.approx(score["u7"], rel=1e-4)
        same = {"copy", "u7"} if own.user_id in {"copy", "u7"} else {own.user_id}
        others = [value for user, value in score.items() if user not in same]
        own_first.append(score[own.user_id] > max(others))
    assert np.mean(own_first) > 0.5  # by chance: 1 of 13


def test_the_gradient_of_a_target_is_that_of_the_own_training_loss() -> None:
    """A user of one event: the log-odds' gradient is the loss', up to the sign and 1 / (1 - p)."""
    events = pa.concat_tables([events_table(), events_table().slice(0, 1)])
    names = pa.array([*events["user_id"].to_pylist()[:-1], "single"])
    log = BehaviorLog.read(events.set_column(0, "user_id", names), items=items_table())
    config = run_config(model={"behavior_head": {"weight": 0.0}})
    model = moved(InfluenceModel.build(config, log))
    loss = TrainingGradients.compute(model, log.select(["single"])).rows[0]
    history = log["single"].keep(slice(0, 0))
    bound = bind(Item(log["single"].item_ids()[0]), model, [history])
    value = target_gradient(model, history, bound)
    probability = next(model.predict([history]))[1].item_logits[0].softmax(dim=0)[bound.codes[0]]
    expected = -loss / (1 - float(probability))
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)


def test_the_batch_size_changes_nothing(log) -> None:
    model = tiny_model("gru")
    one, many = (TrainingGradients.compute(model, log, batch_size=size) for size in (1, 16))
    torch.testing.assert_close(one.rows, many.rows, rtol=1e-4, atol=1e-5)


def test_both_solutions_of_the_damped_system_agree(gradients) -> None:
    few = TrainingGradients(gradients.rows[:, :8], 0, "")
    query = gradients.rows[0, :8]
    rows = few.rows.double().numpy()
    mean = rows.T @ rows / len(rows)
    damped = mean + 0.1 * np.trace(mean) / 8 * np.eye(8)
    expected = -rows @ np.linalg.solve(damped, query.double().numpy()) / len(rows)
    np.testing.assert_allclose(few.scores(query), expected, rtol=1e-6)


def test_a_file_of_another_model_or_log_is_refused(model, log, gradients, tmp_path) -> None:
    path = gradients.save(tmp_path / "gradients.safetensors")
    assert torch.equal(TrainingGradients.load(path, model, log).rows, gradients.rows)
    for other, events in ((tiny_model(noise=0.1), log), (model, log.select(["u1", "u2"]))):
        with pytest.raises(OutputError, match="another model or log"):
            training_influence(other, log["u5"], log=events, gradients=path)


def test_the_model_is_left_as_it_was(model, log, gradients) -> None:
    flags = [parameter.requires_grad for parameter in model.parameters()]
    training_influence(model, log["u5"], log=log, gradients=gradients)
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_slate_is_refused(model, log, gradients) -> None:
    with pytest.raises(ExplanationError, match="no gradient"):
        training_influence(model, log["u5"], Slate(3), log=log, gradients=gradients)


def test_the_sentence_names_users_and_what_they_share() -> None:
    result = TrainingInfluence("B\nig", ("a", "b", "c"), np.array([0.5, -1, 0.2]), (("X",), (), ()))
    expected = "B ig: learned from users who share X (a, +0.50), who share no item (c, +0.20)"
    assert str(result) == expected
    assert result.top(5, opposed=True) == [("b", -1.0)]
