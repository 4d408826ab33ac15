"""The explanation of an ensemble is the weighted sum of its members' explanations."""

import numpy as np
import pytest

from llm_influence import Explainer, InfluenceModel, Item, Slate
from llm_influence.attribution.renderings import Players
from llm_influence.batch.explain import explain_batch
from llm_influence.errors import ExplanationError
from llm_influence.influence.table_files import read_tables
from tests import tiny

WEIGHTS = [0.25, 0.75]


@pytest.fixture(scope="module")
def log():
    return tiny.small_log(users=4)


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_model("bert", "token"), tiny.tiny_model("gru", "text")


@pytest.fixture(scope="module")
def ensemble(pair):
    return InfluenceModel.ensemble(pair, WEIGHTS)


@pytest.mark.parametrize("method", ["leave_one_out", "exact_shapley", "integrated_gradients"])
def test_it_is_the_weighted_sum_and_complete(pair, ensemble, log, method):
    target, options = Item("i3"), {"seed": 1, "fidelity_masks": 4}
    for whole, *parts in zip(
        *(Explainer(m, method, **options).explain(log, target) for m in (ensemble, *pair)),
        strict=True,
    ):
        for name in ("values", "prompt_score", "base_value", "full_value"):
            one, two = (getattr(part, name) for part in parts)
            np.testing.assert_allclose(getattr(whole, name), 0.25 * one + 0.75 * two, atol=1e-9)
        total = whole.values.sum() + whole.prompt_score
        moved = whole.full_value - whole.base_value
        assert whole.quality.completeness_gap == pytest.approx(abs(total - moved) / abs(moved))
        assert whole.quality.evaluations == sum(p.quality.evaluations for p in parts)
        if method == "exact_shapley":
            assert total == pytest.approx(moved, abs=1e-6)


def test_an_ensemble_of_one_is_explained_like_its_model(pair, log):
    ensemble = InfluenceModel.ensemble(pair[:1])
    for one, own in zip(
        *(Explainer(m, "leave_one_out").explain(log) for m in (ensemble, pair[0])), strict=True
    ):
        assert (one.target_id, repr(one.quality)) == (own.target_id, repr(own.quality))
        np.testing.assert_array_equal(one.values, own.values)


def test_top1_is_the_recommendation_of_the_ensemble(ensemble, log):
    for record in Explainer(ensemble).explain(log):
        best = ensemble.recommend(log[record.user_id], 1)[0]
        assert record.target_id == best.item


def test_standard_errors_are_those_of_independent_draws(pair, ensemble, log):
    history = log.at(3)
    whole, one, two = (
        Explainer(m, "permutation_shapley", evaluations=40).explain(history, Item("i3"))
        for m in (ensemble, *pair)
    )
    expected = np.hypot(0.25 * one.standard_errors, 0.75 * two.standard_errors)
    np.testing.assert_allclose(whole.standard_errors, expected)
    assert whole.quality.largest_standard_error == pytest.approx(expected.max())


def test_events_outside_the_context_of_a_member_have_no_influence_there(log):
    long = tiny.tiny_model("bert", "token")
    short = InfluenceModel.build(
        tiny.run_config("gru", rendering={"max_events": 3}), tiny.small_log()
    )
    ensemble, history = InfluenceModel.ensemble([long, short.eval()]), log.at(3)
    whole, one, two = (Explainer(m).explain(history, Item("i3")) for m in (ensemble, long, short))
    assert (len(one.values), len(two.values)) == (len(history), 3)
    np.testing.assert_allclose(whole.values[:-3], 0.5 * one.values[:-3])
    np.testing.assert_allclose(whole.values[-3:], 0.5 * (one.values[-3:] + two.values))
    assert whole.quality.left_out == 0


def test_slates_are_explained_and_different_fields_refused(ensemble, log):
    record = Explainer(ensemble).explain(log.at(0), Slate(3))
    assert record.unit == "NDCG"
    with pytest.raises(ExplanationError, match="different fields"):
        Explainer(ensemble, "shapley", players=Players("fields")).explain(log.at(0))


def test_a_batch_of_explanations_is_written(ensemble, log, tmp_path):
    result = explain_batch(Explainer(ensemble), log, tmp_path, progress=False)
    assert result.users == len(log)
    assert read_tables(tmp_path).num_rows == log.num_events
