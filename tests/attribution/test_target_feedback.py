"""Feedback as what is explained: by every family of methods, with "when" measured late."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence import Explainer, Feedback
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import REMOVALS
from llm_influence.attribution.target import bind, parse_target
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.evaluate import jitter_gaps
from llm_influence.faithfulness.games import rank_target
from llm_influence.influence.influence import from_arrow, to_arrow
from llm_influence.rendering.encoder import collate
from tests import tiny

KINDS = ("binary", "ordinal", "regression")


def feedback_model(kind="binary", backbone="bert", style="token", **options):
    head = {"weight": 1.0, "kind": kind, "positive_from": 4.0, "hidden": 8, **options}
    model = tiny.tiny_model(backbone, style, feedback_head=head, when=True)
    with torch.no_grad():  # far from zero, so that what is left out would be seen
        model.when.weight *= 10
        model.feedback_head.score.weight *= 10
    return model


@pytest.fixture(scope="module", params=KINDS)
def answering(request):
    return feedback_model(request.param)


@pytest.fixture(scope="module")
def binary():
    return feedback_model()


def asked(log, rows=(0, 5, 2)):
    """Histories that end long before their question is asked, each by another gap."""
    return [
        replace(log.at(row), query_time=int(log.at(row).timestamps[-1]) + 3600 * 5**n)
        for n, row in enumerate(rows)
    ]


def plain(model, histories, item="i3", behavior=0):
    """Feedback by the plain forward."""
    code = torch.tensor([model.catalogue.index([item])[0]] * len(histories)).long()
    with torch.no_grad():
        states = model.query(collate(model.encoder.encode(histories)))
        return model.feedback(states, code, torch.full_like(code, behavior)).numpy()


@pytest.mark.parametrize(("backbone", "style"), [("bert", "token"), ("llama", "text")])
@pytest.mark.parametrize("share", [True, False])
def test_dropping_events_is_the_plain_forward_without_them(log, backbone, style, share):
    """The gap to the question grows with the events that go; nothing is left when all go."""
    model, histories = feedback_model("binary", backbone, style), asked(log)
    engine = Engine(model, share=share)
    target = bind(Feedback("i3", "click"), model, histories)
    values = ValueFunction(model, histories, target, "drop", engine=engine)
    draw = np.random.default_rng(0)
    masks = [draw.random((6, len(h))) < 0.6 for h in histories]
    masks = [np.concatenate([m, np.zeros((1, m.shape[1]), bool)]) for m in masks]
    click = model.encoder.vocabulary.behaviors.index("click")
    moved = 0.0
    for history, mask, found in zip(histories, masks, values(masks), strict=True):
        kept = [history.keep(row) for row in mask]
        np.testing.assert_allclose(found, plain(model, kept, behavior=click), atol=1e-4)
        unknown = [replace(each, query_time=None) for each in kept]
        moved = max(moved, np.abs(plain(model, unknown, behavior=click) - found).max())
    assert moved > 1e-2  # "when" matters here


@pytest.mark.parametrize("removal", ["mask", "replace"])
def test_with_other_removals_the_gap_to_the_question_stays(binary, log, removal):
    """The gap from the event that is gone is what is read; the history itself is read once."""
    history, engine = log.at(5), Engine(binary)
    mask = np.ones((1, len(history)), bool)
    mask[0, -1] = False

    def value(later):
        moment = replace(history, query_time=int(history.timestamps[-1]) + later)
        target = bind(Feedback("i3"), binary, [moment])
        code = int(binary.encoder.encode([moment]).when[0])
        return ValueFunction(binary, [moment], target, removal, engine=engine)([mask])[0][0], code

    soon, code = value(1)
    read = engine.tokens
    assert abs(value(10**8)[0] - soon) > 1e-3
    before = binary.when.weight.detach().clone()
    with torch.no_grad():
        binary.when.weight[code] += 0.5
        moved = value(1)[0]
        binary.when.weight.copy_(before)
    assert abs(moved - soon) > 1e-3
    assert engine.tokens == read


@pytest.mark.parametrize("removal", REMOVALS)
def test_shapley_values_of_feedback_add_up(answering, log, removal):
    explainer = Explainer(answering, "exact_shapley", removal=removal, fidelity_masks=0)
    history = asked(log)[0]
    found = explainer.explain(history, Feedback("i3", "cart"))
    cart = answering.encoder.vocabulary.behaviors.index("cart")
    assert found.full_value == pytest.approx(
        float(plain(answering, [history], behavior=cart)[0]), abs=1e-4
    )
    assert found.values.sum() == pytest.approx(found.full_value - found.base_value, abs=1e-6)
    assert np.abs(found.values).max() > 1e-3
    regression = answering.config.feedback_head.kind == "regression"
    assert found.target == ("feedback_value" if regression else "feedback")
    assert found.unit == ("points" if regression else "log-odds")
    assert np.isnan(found.prediction) == regression
    assert found.target_id == "i3,cart"


def test_gradients_follow_feedback(answering, log):
    history = asked(log)[1]
    found = Explainer(answering, "integrated_gradients", fidelity_masks=0).explain(
        history, Feedback("i3")
    )
    assert found.quality.completeness_gap < 0.01
    assert found.full_value == pytest.approx(
        Explainer(answering, fidelity_masks=0).explain(history, Feedback("i3")).full_value, abs=1e-5
    )
    attention = Explainer(answering, "attention_x_gradient", fidelity_masks=0)
    one, other = (attention.explain(history, Feedback(item)).values for item in ("i3", "i4"))
    assert np.abs(one - other).max() > 1e-7


def test_the_default_behaviour_is_the_one_most_labels_are_of(binary, log):
    known = binary.feedback_head.scale.behaviors
    assert bind(Feedback("i3"), binary, [log.at(0)]).behaviors.tolist() == [
        binary.encoder.vocabulary.behaviors.index(known[0])
    ]
    assert bind(Feedback("i3"), binary, [log.at(0)]).ids == ["i3"]


def test_targets_are_read_from_the_command_line(log):
    assert parse_target("feedback:42") == Feedback("42")
    assert parse_target("feedback:42,purchase") == Feedback("42", "purchase")
    for wrong in ("feedback:", "feedback:42,", "feedback:,click"):
        with pytest.raises(ExplanationError, match="feedback:ITEM"):
            parse_target(wrong)


def test_feedback_that_a_model_does_not_predict_is_refused(bert, log):
    with pytest.raises(ExplanationError, match="no feedback head"):
        bind(Feedback("i3"), bert, [log.at(0)])
    clicks = feedback_model(behaviors=["click"])
    with pytest.raises(ExplanationError, match=r"'purchase' was in training.*'click'"):
        bind(Feedback("i3", "purchase"), clicks, [log.at(0)])
    with pytest.raises(ExplanationError, match="'i99'"):
        bind(Feedback("i99"), clicks, [log.at(0)])


def test_a_decision_about_feedback_flips_at_its_middle(answering, log):
    histories = asked(log)
    target = bind(Feedback("i3"), answering, histories)
    ranks = rank_target(target, answering, histories)
    ((_, prediction),) = answering.predict(histories)
    values = target.values(prediction, torch.arange(3))
    found = ranks.values(prediction, torch.arange(3))
    assert found.tolist() == [1 if value > target.middle else 2 for value in values.tolist()]
    regression = answering.config.feedback_head.kind == "regression"
    assert (target.middle != 0) == regression
    assert target.has_probability != regression


def test_explanations_say_and_keep_what_was_explained(answering, log):
    found = Explainer(answering, fidelity_masks=0).explain(asked(log)[1], Feedback("i3"))
    regression = answering.config.feedback_head.kind == "regression"
    text = found.to_text()
    assert "feedback" in text.lower()
    assert ("points" if regression else "log-odds") in text
    assert ("%" in text) != regression
    assert ("反馈值" if regression else "正面反馈") in found.to_text("zh")
    (back,) = from_arrow(to_arrow([found]))
    assert back.target == found.target
    assert back.unit == found.unit
    assert back.to_text() == text


def test_jittered_gaps_leave_the_moment_of_the_question(log):
    history = asked(log)[1]
    moved = jitter_gaps(history, 0, 0)
    assert moved.query_time == history.query_time
    assert moved.timestamps[-1] == history.timestamps[-1]
    assert (moved.timestamps != history.timestamps).any()
