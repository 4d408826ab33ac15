"""What is measured about an explanation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from llm_influence.attribution.explainer import Explainer, quality_cards, spare_masks
from llm_influence.attribution.methods import LeaveOneOut
from llm_influence.attribution.registry import Task
from llm_influence.attribution.target import Contrast, bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from tests.attribution.stand_ins import bag_model, typed

HISTORY = typed("i3", "i9", "i4", "i12", "i1", "i7", "i2")


def test_sums_of_true_weights_fit_every_set_and_turned_signs_fit_none():
    model, target = bag_model(), Contrast("i5", "i6")
    card = Explainer(model, "leave_one_out").explain(HISTORY, target).quality
    assert (card.lds, card.fidelity_masks) == (pytest.approx(1), 16)
    task = Task(model, [HISTORY], bind(target, model, [HISTORY]), "drop", 0)
    method = LeaveOneOut()
    attribution = method.run(task)
    turned = replace(attribution, scores=[-scores for scores in attribution.scores])
    options = Explainer(model).card
    assert quality_cards(task, method, turned, [0], options)[0].lds == pytest.approx(-1)


def test_linear_fidelity_is_that_of_histories_shortened_by_hand(bert, log):
    history = bert.encoder.trim(log.at(9))
    found = Explainer(bert, "integrated_gradients", steps=4, seed=3).explain(history, "i7")
    masks = spare_masks(history.user_id, len(history), 16, 3)
    values = ValueFunction(bert, [history], bind("i7", bert, [history]), "drop")([masks])[0]
    expected = spearmanr(values, masks @ found.values).statistic
    assert found.quality.lds == pytest.approx(expected)
    assert abs(expected) < 0.999


def test_the_sets_depend_on_user_and_seed_and_hold_neither_none_nor_all():
    def drawn(user="u1", players=20, count=16, seed=0):
        return spare_masks(user, players, count, seed)

    np.testing.assert_array_equal(drawn(), drawn())
    for other in (drawn(user="u2"), drawn(seed=1)):
        assert not np.array_equal(drawn(), other)
    assert drawn().shape == (16, 20)
    assert abs(drawn(count=4000).mean() - 0.5) < 0.01
    for players, sets in ((1, 0), (2, 2), (3, 6), (4, 14), (5, 16)):
        found = drawn(players=players)
        assert found.shape == (sets, players)
        assert len({mask.tobytes() for mask in found}) == sets
        assert found.any(axis=1).all()
        assert not found.all(axis=1).any()


def test_evaluations_of_the_card_stand_apart_and_what_is_known_is_not_computed_again(bert, log):
    history = bert.encoder.trim(log.at(7))
    size = len(history)
    alone = Explainer(bert, "leave_one_out", fidelity_masks=0).explain(history).quality
    assert (alone.evaluations, alone.card_evaluations, alone.fidelity_masks) == (size + 2, 0, 0)
    assert np.isnan(alone.lds)
    own = {mask.tobytes() for mask in ~np.eye(size, dtype=bool)}
    masks = spare_masks(history.user_id, size, 16, 0)
    new = sum(mask.tobytes() not in own for mask in masks)
    tried = Explainer(bert, "leave_one_out").explain(history).quality
    assert (tried.evaluations, tried.card_evaluations) == (size + 2, new)
    both = Explainer(bert, "integrated_gradients", steps=2, agree_with="leave_one_out")
    card = both.explain(history).quality
    assert (card.evaluations, card.card_evaluations) == (2 * 2 + 2, 16 + size + 2 - (16 - new))


def test_agreement_is_with_the_scores_of_the_other_method(bert, log):
    history = bert.encoder.trim(log.at(9))
    one = Explainer(
        bert, "leave_one_out", removal="mask", agree_with="integrated_gradients"
    ).explain(history)
    other = Explainer(bert, "integrated_gradients").explain(history)
    expected = spearmanr(one.values, other.values).statistic
    assert one.quality.agreement == pytest.approx(expected)
    assert one.quality.agreement_with == "integrated_gradients"
    for name, said in (("group_shapley", "itself"), ("shapely", "unknown method 'shapely'")):
        with pytest.raises(ExplanationError, match=said):
            Explainer(bert, agree_with=name)
    with pytest.raises(ExplanationError, match="fidelity_masks is -1"):
        Explainer(bert, fidelity_masks=-1)


def test_what_the_method_says_of_itself_stands_on_the_card(bert, log):
    class Sampled(LeaveOneOut):
        def run(self, task):
            errors = [0.1 * np.arange(size) for size in task.sizes]
            converged = np.array([True, False])
            return replace(super().run(task), standard_errors=errors, converged=converged)

    explainer = Explainer(bert, Sampled())
    first, second = explainer.explain([log.at(0), log.at(1)])
    assert (first.quality.converged, second.quality.converged) == (True, False)
    assert first.quality.largest_standard_error == pytest.approx(0.3)
    np.testing.assert_allclose(second.standard_errors, 0.1 * np.arange(5))


def test_the_card_says_how_far_bfloat16_is_off(bert):
    """Of two events all four sets are the sample, so the error is that of every value."""
    history, how = typed("i3", "i9"), {"fidelity_masks": 0}
    exact = Explainer(bert, "exact_shapley", **how).explain(history, "i7")
    rounded = Explainer(bert, "exact_shapley", dtype="bfloat16", **how)
    found, other = rounded.explain_many(history, ["i7", "cart"])
    error = found.quality.bfloat16_error
    ends = [abs(getattr(found, n) - getattr(exact, n)) for n in ("base_value", "full_value")]
    off = np.abs(found.values - exact.values)
    assert 1e-6 < max(ends) <= error < 0.3
    assert 0 < off.max() <= 2 * error
    assert other.quality.bfloat16_error == rounded.explain(history, "cart").quality.bfloat16_error
    assert other.quality.bfloat16_error != error
    assert np.isnan(exact.quality.bfloat16_error)


def test_a_precision_that_is_none_or_of_no_use_is_refused(bert):
    with pytest.raises(ExplanationError, match=r"dtype 'float16'.*'bfloat16', 'float32'"):
        Explainer(bert, dtype="float16")
    for method in ("integrated_gradients", "attention_last", "recency"):
        with pytest.raises(ExplanationError, match=rf"{method} does not.*bfloat16.*shapley"):
            Explainer(bert, method, dtype="bfloat16")
