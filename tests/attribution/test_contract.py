"""What every registered method promises, on every backbone family and rendering style."""

import functools

import numpy as np
import pytest
import torch

from llm_influence import Contrast, Explainer
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.renderings import REMOVALS
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.evaluate import evaluate_faithfulness
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import InfluenceModel
from tests import tiny
from tests.attribution.stand_ins import bag_model, typed, weights

CASES = [(name, r) for name, spec in METHODS.items() for r in spec.removals or (None,)]
OPTIONS = {
    "smoothgrad": {"samples": 3},
    "expected_gradients": {"samples": 3},
    "shapley": {"evaluations": 40},
    "permutation_shapley": {"evaluations": 40},
    "coarse_to_fine": {"evaluations": 30, "blocks": 2},  # 8 events are long, 4 and 6 are short
    "sparse_surrogate": {"evaluations": 40},
}
"""Fewer draws than by default: what is promised here holds for any number."""
DRAWN = ("expected_gradients",)
"""Their baselines are drawn at random, so what a zero baseline gives holds only on average."""
OFTEN_SHORT = {"exact_shapley", "shapley", "permutation_shapley", "coarse_to_fine"} | {
    "sparse_surrogate"
}
"""Methods that read histories without their last event, where another is the last."""
USERS = ("u0", "u7", "u2")  # 4, 11 (longer than the context) and 6 events

every_case = pytest.mark.parametrize(("method", "removal"), CASES)
IN_TARGET_UNITS = [
    (name, removal, {"baseline": "zero"} if "baseline" in METHODS[name].options else {})
    for name, removal in CASES
    if METHODS[name].units == "target"
    and METHODS[name].family != "attention"  # blind to what passes by the attention
    and name not in DRAWN
]
in_target_units = pytest.mark.parametrize(("method", "removal", "options"), IN_TARGET_UNITS)
from_nothing = pytest.mark.parametrize(
    ("method", "removal", "options"), [case for case in IN_TARGET_UNITS if case[1] != "replace"]
)
from_neutral = pytest.mark.parametrize(
    ("method", "removal", "options"), [case for case in IN_TARGET_UNITS if case[1] == "replace"]
)
"""Where a neutral event stands in, scores are compared with its score and not with nothing."""


def explainer(model: InfluenceModel, method: str, removal: str | None, **how: int) -> Explainer:
    return Explainer(model, method, removal=removal, **OPTIONS.get(method, {}), **how)


@functools.cache
def explained(model: InfluenceModel, method: str, removal: str | None) -> list[Influence]:
    log = tiny.small_log()
    return explainer(model, method, removal, seed=5).explain([log.history(u) for u in USERS])


def assert_same(ours: Influence, theirs: Influence, tolerance: float = 1e-4) -> None:
    scale = max(1.0, np.abs(theirs.scores).max())
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=tolerance * scale)
    for name in ("prompt_score", "base_value", "full_value"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=tolerance * scale)
    assert ours.target_id == theirs.target_id
    for name in ("evaluations", "card_evaluations", "fidelity_masks"):
        assert getattr(ours.quality, name) == getattr(theirs.quality, name)
    # a rank correlation jumps where rounding turns two values that are almost equal
    assert ours.quality.lds == pytest.approx(theirs.quality.lds, abs=0.03, nan_ok=True)


@every_case
def test_every_event_gets_a_finite_score_and_the_card_says_how(any_model, log, method, removal):
    for user, found in zip(USERS, explained(any_model, method, removal), strict=True):
        history = log.history(user)
        assert np.isfinite(found.scores).all()
        assert len(found.scores) == len(found.events)
        assert [event.item for event in found.events] == history.item_ids()[-len(found.events) :]
        assert found.quality.left_out == len(history) - len(found.events)
        assert found.quality.method == method
        assert found.quality.removal == (removal or "none")
        assert found.quality.units == METHODS[method].units
        assert found.quality.seed == 5
        assert found.quality.evaluations >= 2
        assert found.target_id == any_model.recommend(history, 1)[0].item
        assert found.prediction == pytest.approx(1 / (1 + np.exp(-found.full_value)))


@every_case
def test_batch_and_padding_change_nothing(any_model, log, method, removal):
    for user, together in zip(USERS, explained(any_model, method, removal), strict=True):
        alone = explainer(any_model, method, removal, seed=5, batch_size=1).explain(
            log.history(user)
        )
        assert_same(alone, together)


@every_case
def test_the_same_seed_gives_the_same_scores(any_model, log, method, removal):
    again = explainer(any_model, method, removal, seed=5).explain([log.history(u) for u in USERS])
    for ours, theirs in zip(again, explained(any_model, method, removal), strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)


@every_case
def test_a_model_in_training_is_explained_without_dropout_and_left_as_it_was(
    any_model, log, method, removal
):
    trained = {name for name, p in any_model.named_parameters() if p.requires_grad}
    attention = any_model.body.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    any_model.train()
    try:
        found = explainer(any_model, method, removal, seed=5).explain(log.history("u0"))
        assert all(module.training for module in any_model.modules())
    finally:
        any_model.eval()
    assert_same(found, explained(any_model, method, removal)[0])
    assert any_model.body.config._attn_implementation == attention
    assert {name for name, p in any_model.named_parameters() if p.requires_grad} == trained
    assert all(parameter.grad is None for parameter in any_model.parameters())
    for name, tensor in any_model.state_dict().items():
        assert torch.equal(tensor, before[name])


@every_case
def test_the_completeness_gap_is_what_the_scores_lack(any_model, method, removal):
    for found in explained(any_model, method, removal):
        moved = found.full_value - found.base_value
        total = found.scores.sum() + found.prompt_score
        assert found.quality.completeness_gap == pytest.approx(abs(total - moved) / abs(moved))


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].units == "share"])
def test_shares_are_never_negative_and_add_up_to_one(any_model, method):
    for found in explained(any_model, method, None):
        assert (found.scores >= 0).all()
        assert found.scores.sum() + found.prompt_score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].attention])
def test_methods_that_read_attention_refuse_a_recurrent_model(recurrence, log, method):
    with pytest.raises(ExplanationError, match=r"'recurrence' does not attend.*leave_one_out"):
        Explainer(recurrence, method)
    with pytest.raises(ExplanationError, match="does not attend"):
        Explainer(recurrence, agree_with=method)
    with pytest.raises(ExplanationError, match="does not attend"):
        evaluate_faithfulness(recurrence, [log.at(0)], [method])


def test_what_no_model_has_read_is_alike_to_nothing(recurrence, log):
    with pytest.raises(ExplanationError, match=r"no language model has read.*recurrent\.words"):
        Explainer(recurrence, "item_similarity").explain(log.at(0))


def test_the_gates_of_a_recurrence_stand_beside_its_scores(recurrence, bert, log):
    found = Explainer(recurrence, "leave_one_out").explain([log.at(0), log.at(3)])
    for record, history in zip(found, (log.at(0), log.at(3)), strict=True):
        gates = recurrence.gates(history).mean(dim=1).numpy()
        assert record.gates.shape == record.scores.shape
        np.testing.assert_allclose(record.gates, gates, rtol=1e-4)
    assert Explainer(bert, "leave_one_out").explain(log.at(0)).gates is None


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_recurrent_model_is_read_whole_whether_beginnings_may_be_shared_or_not(
    recurrence, log, removal
):
    masks = [np.tri(4, 4, dtype=bool)]
    bound = bind("i7", recurrence, [log.history("u0")])
    shared, whole = (
        ValueFunction(
            recurrence,
            [log.history("u0")],
            bound,
            removal,
            engine=Engine(recurrence, share=share),
        )(masks)[0]
        for share in (True, False)
    )
    np.testing.assert_allclose(shared, whole, atol=1e-5)
    assert np.ptp(whole) > 1e-2


# --- families beside those that every method is tried on -------------------------------------

ELSEWHERE = (
    "integrated_gradients",
    "event_path_integrated_gradients",
    "expected_gradients",
    "input_x_gradient",
    "attention_last",
    "attention_rollout",
    "attention_flow",
    "attention_value_norm",
    "attention_gradient",
    "attention_x_gradient",
)


@pytest.fixture(scope="module", params=[*tiny.OTHER_BACKBONES, "bert that counts"])
def other_family(request):
    kind, *counts = request.param.split(" that ")
    return tiny.tiny_model(kind, "token", item_head={"repeats": bool(counts)})


@pytest.mark.parametrize("method", ELSEWHERE)
def test_other_families_keep_the_contract(other_family, log, method):
    test_every_event_gets_a_finite_score_and_the_card_says_how(other_family, log, method, None)
    test_batch_and_padding_change_nothing(other_family, log, method, None)
    test_the_completeness_gap_is_what_the_scores_lack(other_family, method, None)
    gaps = [found.quality.completeness_gap for found in explained(other_family, method, None)]
    promised = {"integrated_gradients": 0.01, "event_path_integrated_gradients": 1e-6}
    assert max(gaps) <= promised.get(method, np.inf)
    if METHODS[method].units == "share":
        test_shares_are_never_negative_and_add_up_to_one(other_family, method)


# --- truths that hold on a model whose answer is a sum over events --------------------------


@from_nothing
def test_scores_are_the_weights_of_a_linear_model(method, removal, options):
    model, history = bag_model(), typed("i3", "i9", "i4", "i12")
    found = Explainer(model, method, removal=removal, **options).explain(
        history, Contrast("i5", "i6")
    )
    known = weights(model, history, "i5", "i6")
    assert np.abs(known).min() > 1e-2
    np.testing.assert_allclose(found.scores, known, rtol=1e-3, atol=1e-4)


@from_neutral
def test_replaced_events_get_their_weights_less_that_of_a_neutral_event(method, removal, options):
    model, history = bag_model(), typed("i3", "i9", "i4", "i12")
    found = Explainer(model, method, removal=removal, **options).explain(
        history, Contrast("i5", "i6")
    )
    less = found.scores - weights(model, history, "i5", "i6")
    np.testing.assert_allclose(less, less[0], rtol=1e-3, atol=1e-4)
    assert abs(less[0]) > 1e-3


@from_nothing
def test_an_event_without_effect_gets_nothing(method, removal, options):
    model = bag_model()
    row = model.first_item + int(model.catalogue.index(["i9"])[0])
    with torch.no_grad():
        model.units.words[row] = 0
        model.units.residual[row] = 0
    found = Explainer(model, method, removal=removal, **options).explain(
        typed("i3", "i9", "i4"), "i5"
    )
    assert found.scores[1] == 0
    assert np.abs(found.scores[[0, 2]]).min() > 1e-3


@in_target_units
@pytest.mark.parametrize("target", ["i7", "cart"])
def test_events_that_a_transformer_does_not_attend_to_get_nothing(
    last_event_alone, log, method, removal, options, target
):
    if method in OFTEN_SHORT:
        pytest.skip("another event is the last where the last is removed (test_shapley has this)")
    how = Explainer(last_event_alone, method, removal=removal, **options)
    scores = how.explain(log.history("u2"), target).scores
    np.testing.assert_allclose(scores[:-1], 0, atol=1e-5)
    assert abs(scores[-1]) > 1e-3


@in_target_units
def test_the_same_event_twice_gets_the_same_twice(method, removal, options):
    if method == "event_path_integrated_gradients":
        pytest.skip("the order in which events enter matters to it")
    found = Explainer(bag_model(), method, removal=removal, **options).explain(
        typed("i9", "i3", "i9", "i4"), "i5"
    )
    assert found.scores[0] == pytest.approx(found.scores[2], rel=1e-3)
    assert abs(found.scores[0] - found.scores[1]) > 1e-3


@in_target_units
def test_a_prediction_that_ignores_the_history_gives_nothing_to_any_event(
    any_model, log, method, removal, options
):
    held = any_model.item_head.project.weight.detach().clone()
    with torch.no_grad():
        any_model.item_head.project.weight.zero_()
        any_model.item_head.project.bias.add_(1.0)
    try:
        found = Explainer(any_model, method, removal=removal, **options).explain(log.history("u0"))
    finally:
        with torch.no_grad():
            any_model.item_head.project.weight.copy_(held)
            any_model.item_head.project.bias.sub_(1.0)
    np.testing.assert_array_equal(found.scores, 0)
    assert np.isnan(found.quality.completeness_gap)
