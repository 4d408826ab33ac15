"""Scores compared with a known truth."""

import numpy as np
import pytest

from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.games import recovery

TRUTH = np.array([0.0, -2.0, 0.0, 1.0, 3.0])
CAUSE = TRUTH != 0


def of(*scores, truth=TRUTH, cause=CAUSE):
    return recovery([np.array(scores, dtype=float)], [truth], [cause]).means()


def test_the_truth_itself_recovers_everything():
    assert set(of(*TRUTH).values()) == {1.0}
    assert set(of(*(7 * TRUTH)).values()) == {1.0}


def test_known_figures_of_known_scores():
    found = of(4, 3, 0, -2, 1)  # by size: the first, no cause, leads; causes stand at 2, 3 and 4
    assert found["auroc"] == pytest.approx(3 / 6)
    assert found["auprc"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert found["mass"] == pytest.approx(6 / 10)


def test_a_sign_that_is_wrong_costs_the_signed_correlation_alone():
    found = of(*-TRUTH)
    assert found["spearman"] == pytest.approx(-1)
    assert found["size_spearman"] == found["auroc"] == found["mass"] == pytest.approx(1)


def test_scores_that_are_all_the_same_find_nothing():
    found = of(1, 1, 1, 1, 1)
    assert found["auroc"] == 0.5
    assert found["spearman"] == 0
    assert found["mass"] == pytest.approx(3 / 5)


def test_a_history_that_cannot_have_a_figure_does_not_enter_its_mean():
    every, ones = np.array([1.0, 2.0, 3.0]), np.ones(3, dtype=bool)
    found = recovery([TRUTH, every], [TRUTH, every], [CAUSE, ones])
    assert np.isnan(found.auroc[1])
    assert found.spearman[1] == pytest.approx(1)
    assert found.means()["auroc"] == 1
    assert np.isnan(of(0, 0, 0, 0, 0)["mass"])


def test_tied_truth_bounds_the_correlation_as_documented():
    random = np.random.default_rng(0)
    truth = np.concatenate([np.zeros(600), random.normal(size=400)])
    noisy = truth + 1e-9 * random.normal(size=1000)
    assert of(*noisy, truth=truth, cause=truth != 0)["spearman"] == pytest.approx(
        np.sqrt(1 - 0.6**3), abs=0.01
    )


@pytest.mark.parametrize(
    ("scores", "message"),
    [([TRUTH[:-1]], "another number of scores"), ([TRUTH, TRUTH], "scores of 2 histories")],
)
def test_scores_of_other_histories_are_refused(scores, message):
    with pytest.raises(ExplanationError, match=message):
        recovery(scores, [TRUTH], [CAUSE])
