"""Metrics on games with known answers."""

import numpy as np
import pytest
from scipy.special import expit

from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.games import STEPS
from llm_influence.faithfulness.metrics import METRICS, find_metrics
from tests.faithfulness.games import additive, game, scored

BASE = -1.0
WEIGHTS = [
    np.array([0.5, -1.0, 2.0, 0.25, 1.0, -0.5, 0.75, 0.1, 3.0, -2.0]),
    np.array([1.0, 2.0, 4.0]),
    np.random.default_rng(0).normal(size=30),
]


def measure(name, played, found):
    return METRICS[name].measure(played, found)


@pytest.fixture
def exact():
    played = additive(WEIGHTS, BASE)
    return played, scored(played, WEIGHTS, BASE)


@pytest.mark.parametrize(
    ("name", "perfect"),
    [
        ("lds", 1),
        ("infidelity", 0),
        ("completeness_gap", 0),
    ],
)
def test_exact_scores_of_an_additive_game_are_perfect(exact, name, perfect):
    np.testing.assert_allclose(measure(name, *exact), perfect, atol=1e-12)


@pytest.mark.parametrize(("name", "perfect"), [("rmse", 0), ("spearman", 1), ("top3", 1)])
def test_weights_of_an_additive_game_are_its_shapley_values_where_short_enough(
    exact, name, perfect
):
    np.testing.assert_allclose(
        measure(f"exact_{name}", *exact), [perfect, perfect, np.nan], atol=1e-12
    )


def test_shapley_shares_a_pair_effect_in_halves():
    def both(mask):
        return 3.0 * (mask[:, 0] & mask[:, 2])

    np.testing.assert_allclose(game([both], [4]).exact[0], [1.5, 0, 1.5, 0], atol=1e-12)


def test_curves_of_an_additive_game_are_partial_sums(exact):
    for row, weights in enumerate(WEIGHTS):
        falling = np.concatenate([[0], np.cumsum(np.sort(weights)[::-1])])
        counts = [int(np.ceil(step / 100 * len(weights) - 1e-9)) for step in STEPS]
        kept = BASE + falling[counts]
        left = BASE + weights.sum() - falling[counts]
        rising = np.concatenate([[0], np.cumsum(np.sort(weights))])
        least_first = BASE + weights.sum() - rising[counts]
        whole = expit(np.array(BASE + weights.sum()))
        expected = {
            "deletion_auc": left.mean(),
            "insertion_auc": kept.mean(),
            "abpc": least_first.mean() - left.mean(),
            "comprehensiveness_aopc": whole - expit(left).mean(),
            "sufficiency_aopc": whole - expit(kept).mean(),
            "comprehensiveness@20": whole - expit(left[1]),
            "sufficiency@20": whole - expit(kept[1]),
        }
        for name, value in expected.items():
            assert measure(name, *exact)[row] == pytest.approx(value), name


@pytest.mark.parametrize("name", ["deletion_auc", "insertion_auc", "abpc", "lds", "infidelity"])
def test_exact_scores_beat_wrong_ones(exact, name):
    played, _ = exact
    wrong = scored(played, [-weights for weights in WEIGHTS])
    sign = 1 if METRICS[name].better == "high" else -1
    assert (sign * measure(name, *exact) > sign * measure(name, played, wrong)).all()


def test_reversed_scores_reverse_the_area_between_the_curves(exact):
    played, _ = exact
    wrong = scored(played, [-weights for weights in WEIGHTS])
    np.testing.assert_allclose(measure("abpc", played, wrong), -measure("abpc", *exact))


@pytest.mark.parametrize("name", ["lds", "abpc", "exact_spearman"])
def test_random_scores_are_near_zero(name):
    draw = np.random.default_rng(1)
    played = additive([draw.normal(size=8) for _ in range(300)], BASE)
    found = measure(name, played, scored(played, [draw.normal(size=8) for _ in range(300)]))
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(300)
    assert found.std() > 0.05  # and not because nothing was measured


def test_constant_scores_have_no_recency_and_predict_nothing():
    sizes = [12] * 200
    played = additive([np.arange(size, dtype=float) for size in sizes])
    flat = scored(played, [np.ones(size) for size in sizes])
    assert (measure("lds", played, scored(played, [np.zeros(12)] * 200)) == 0).all()
    firsts = np.bincount([order[0] for order in flat.orders], minlength=12)
    assert firsts.max() < 40  # about 17 each; all 200 at one place under a fixed rule
    other = scored(played, [np.full(12, 7.0)] * 200)
    assert all((a == b).all() for a, b in zip(flat.orders, other.orders, strict=True))


def test_shares_have_no_units(exact):
    played, _ = exact
    shares = scored(played, [np.full(len(w), 1 / len(w)) for w in WEIGHTS], in_target_units=False)
    for name in ("infidelity", "completeness_gap", "exact_rmse"):
        assert np.isnan(measure(name, played, shares)).all()


def test_held_out_sets_of_few_events_come_once_and_follow_user_and_seed():
    played = additive(WEIGHTS[:2])
    assert played.held_out[1].sum(axis=1).tolist().count(1) == 3
    assert len(np.unique(played.held_out[1], axis=0)) == len(played.held_out[1]) == 2**3 - 2
    again, other = additive(WEIGHTS[:2]), additive(WEIGHTS[:2], seed=1)
    assert (again.held_out[0] == played.held_out[0]).all()
    assert (other.held_out[0] != played.held_out[0]).any()


@pytest.fixture
def ranked():
    """The target is first with three or more of its four good events, in the top ten with one."""

    def rank(mask):
        return np.array([40, 10, 5, 1, 1])[mask[:, :4].sum(axis=1)]

    played = game([lambda mask: mask.sum(axis=1) * 1.0], [12], ranks=[rank])
    return played, np.r_[np.ones(4), np.zeros(8)]


def test_list_and_counterfactual_metrics_read_ranks(ranked):
    played, good = ranked
    right, wrong = scored(played, [good]), scored(played, [-good])
    assert measure("pos@10,1", played, right).tolist() == [1]  # three good events are left
    assert measure("pos@10,5", played, right).tolist() == [0]  # none is
    assert measure("neg@10,5", played, right).tolist() == [1]
    assert measure("pos@10,5", played, wrong).tolist() == [1]
    assert measure("neg@10,5", played, wrong).tolist() == [0]
    assert measure("counterfactual_share", played, right).tolist() == [1]
    assert measure("counterfactual_size", played, right).tolist() == [2]
    assert measure("counterfactual_size", played, wrong).tolist() == [10]


def test_without_a_counterfactual_the_share_is_0_and_the_size_unknown(ranked):
    played, good = ranked
    short = game([played.values], [12], ranks=[lambda mask: np.ones(len(mask))])
    found = scored(short, [good])
    assert measure("counterfactual_share", short, found).tolist() == [0]
    assert np.isnan(measure("counterfactual_size", short, found)).all()
    never_first = game([played.values], [12], ranks=[lambda mask: np.full(len(mask), 2)])
    assert np.isnan(measure("counterfactual_share", never_first, found)).all()


def test_a_history_that_would_be_deleted_whole_has_no_list_metric():
    played = game([lambda mask: mask.sum(axis=1) * 1.0], [5])
    found = scored(played, [np.arange(5.0)])
    assert np.isnan(measure("pos@10,5", played, found)).all()
    assert np.isfinite(measure("pos@10,1", played, found)).all()


def test_sensitivity_is_the_largest_relative_change():
    played = additive([np.array([3.0, 4.0])])
    moved = [[np.array([3.0, 4.5])], [np.array([3.0, 2.0])]]
    found = scored(played, [np.array([3.0, 4.0])], jittered=moved)
    assert measure("sensitivity", played, found).tolist() == [pytest.approx(2 / 5)]
    assert np.isnan(measure("sensitivity", played, scored(played, [np.zeros(2)], jittered=moved)))


def test_an_unknown_metric_is_named_with_the_nearest_one():
    with pytest.raises(ExplanationError, match="did you mean 'insertion_auc'"):
        find_metrics(["insertion-auc"])


def test_values_that_are_no_log_odds_have_no_probabilities(exact):
    played = additive(WEIGHTS, BASE, log_odds=False)
    for name in ("comprehensiveness@20", "sufficiency_aopc"):
        assert np.isnan(measure(name, played, exact[1])).all()
    assert np.isfinite(measure("deletion_auc", played, exact[1])).all()


def test_one_event_has_no_rank_correlation_and_still_has_curves():
    played = additive([np.array([2.0])])
    found = scored(played, [np.array([2.0])])
    assert np.isnan(measure("lds", played, found)).all()
    assert np.isnan(measure("infidelity", played, found)).all()
    assert measure("deletion_auc", played, found).tolist() == [BASE]
