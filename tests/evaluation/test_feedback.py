"""Metrics of feedback, behaviours and exposure against scikit-learn and sums done by hand."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, log_loss, roc_auc_score

from llm_influence.evaluation.metrics import (
    behavior_metrics,
    calibration_error,
    exposure_metrics,
    feedback_metrics,
    value_metrics,
)


@pytest.fixture(scope="module")
def answers():
    """Labels, log-odds with many ties, and users of whom some have one sort of label alone."""
    draw = np.random.default_rng(3)
    scores = np.round(2 * draw.standard_normal(300), 1)
    labels = draw.random(300) < 1 / (1 + np.exp(-scores))
    return labels.astype(float), scores, np.array([f"u{n}" for n in draw.integers(0, 120, 300)])


def test_auc_log_loss_and_brier_are_those_of_scikit_learn(answers):
    labels, scores, _ = answers
    found, chances = feedback_metrics(*answers), 1 / (1 + np.exp(-scores))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["log_loss"] == pytest.approx(log_loss(labels, chances))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, chances))


def test_gauc_is_the_mean_auc_of_users_with_both_labels_by_their_rows(answers):
    labels, scores, users = answers
    areas, rows = [], []
    for user in np.unique(users):
        own = users == user
        if len(np.unique(labels[own])) == 2:
            areas.append(roc_auc_score(labels[own], scores[own]))
            rows.append(own.sum())
    assert 20 < len(areas) < len(np.unique(users))
    found = feedback_metrics(labels, scores, users)["gauc"]
    assert found == pytest.approx(np.average(areas, weights=rows))
    assert abs(found - np.mean(areas)) > 1e-3


def test_metrics_do_not_depend_on_the_order_of_rows(answers):
    order = np.random.default_rng(0).permutation(300)
    shuffled = feedback_metrics(*(column[order] for column in answers))
    assert shuffled == pytest.approx(feedback_metrics(*answers), rel=1e-12)


def test_the_calibration_error_compares_each_bin_of_equal_mass_with_its_share_of_ones():
    chances = np.arange(1, 31) / 31
    ones = (np.arange(30) % 3 == 0).astype(float)
    bins = [slice(2 * n, 2 * n + 2) for n in range(15)]
    by_hand = sum(abs(chances[b].sum() - ones[b].sum()) for b in bins) / 30
    assert calibration_error(ones, chances) == pytest.approx(by_hand)
    same = np.full(30, 0.25)  # equal chances stand in one bin, in whatever order their labels come
    assert calibration_error(ones, same) == pytest.approx(abs(0.25 - 1 / 3))


def test_what_is_certain_and_right_costs_nothing():
    found = feedback_metrics([0, 1], [-np.inf, np.inf], ["u", "u"])
    assert found == {"auc": 1, "gauc": 1, "log_loss": 0, "ece": 0, "brier": 0}
    assert feedback_metrics([1, 0], [-np.inf, np.inf], ["u", "u"])["log_loss"] == np.inf


def test_areas_of_one_sort_of_label_are_not_defined():
    found = feedback_metrics([1, 1, 0], [0.0, 1.0, 2.0], [7, 7, 8])
    assert np.isnan(found["gauc"])
    assert found["auc"] == 0
    assert np.isnan(feedback_metrics([1, 1], [0.0, 1.0], [7, 8])["auc"])


def test_errors_of_values():
    assert value_metrics([1, 2, 4], [1, 4, 3]) == pytest.approx(
        {"rmse": (5 / 3) ** 0.5, "mae": 1.0}
    )


def test_behaviours_are_measured_as_by_scikit_learn():
    targets, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 3])
    found = behavior_metrics(targets, predicted, np.log([0.5, 0.25, 0.5, 1, 1, 0.125]))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx(np.mean([2 / 3, 2 / 3, 4 / 5, 0]))
    assert found["macro_f1"] == pytest.approx(
        f1_score(targets, predicted, average="macro", zero_division=0)
    )
    assert found["log_loss"] == pytest.approx(-np.log([0.5, 0.25, 0.5, 0.125]).sum() / 6)


def test_exposure_counts_items_shown_and_their_percentiles():
    counts = np.array([0, 10, 5, 5])  # percentiles 1/8, 7/8, and 1/2 for the two in the middle
    top = np.array([[1, 2], [1, -1]])
    assert exposure_metrics(top, np.array([0, 1]), counts, 2) == pytest.approx(
        {"coverage@2": 2 / 4, "popularity@2": (7 / 8 + 1 / 2 + 7 / 8) / 3, "target_popularity": 0.5}
    )
