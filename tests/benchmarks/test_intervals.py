import numpy as np
import pytest

from benchmarks.statistics import (
    auc_over_users_and_seeds,
    mean_interval,
    means_over_users_and_seeds,
    paired_bootstrap,
    weighted_auc,
)
from llm_influence.evaluation.metrics import feedback_metrics


def test_student_interval_of_three_runs():
    # sd 1, three runs: half width 4.303 / sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-4)


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match="1 values"):
        mean_interval([0.1])


def test_bootstrap_draws_the_same_users_for_both():
    ours = np.random.default_rng(0).random(200)
    difference, ratio = paired_bootstrap(ours, ours / 2)
    assert ratio == pytest.approx((2, 2, 2))  # exact only when paired
    assert difference[1] < ours.mean() / 2 < difference[2]


def test_bootstrap_is_as_wide_as_the_standard_error_says():
    random = np.random.default_rng(1)
    ours, theirs = random.random(400), random.random(400)
    (value, low, high), _ = paired_bootstrap(ours, theirs)
    half = 1.96 * np.std(ours - theirs) / 20
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.1)


def test_an_interval_over_users_and_seeds_is_wider_where_seeds_differ():
    users = np.random.default_rng(0).normal(size=300)
    alike = means_over_users_and_seeds(np.stack([users] * 3))
    apart = means_over_users_and_seeds(np.stack([users - 1, users, users + 1]))
    assert alike[0] == pytest.approx(apart[0])
    half = 1.96 * users.std() / np.sqrt(300)
    assert (alike[2] - alike[1]) / 2 == pytest.approx(half, rel=0.1)
    assert apart[2] - apart[1] > 3 * (alike[2] - alike[1])


def test_a_weighted_auc_is_that_of_rows_as_often_as_they_weigh_with_ties_counting_half():
    random = np.random.default_rng(0)
    labels, codes = random.integers(0, 2, 50), random.integers(0, 9, 50)
    weights = random.integers(0, 4, 50)
    rows = np.repeat(np.arange(50), weights)
    expected = feedback_metrics(labels[rows], codes[rows], np.zeros(len(rows)))["auc"]
    assert weighted_auc(labels, codes, weights) == pytest.approx(expected)


def test_a_system_differs_from_itself_by_nothing_and_a_better_one_by_more():
    random = np.random.default_rng(0)
    labels, users = random.integers(0, 2, 400), np.repeat(np.arange(40), 10)
    noise = random.normal(size=(2, 400))
    worse, better = noise + 0.5 * labels, noise + 2 * labels
    first, same, nothing, other, gain = auc_over_users_and_seeds(
        labels, [worse, worse, better], users, draws=200
    )
    assert same == first
    assert nothing == (0, 0, 0)
    assert gain[0] == pytest.approx(other[0] - first[0])
    assert 0 < gain[1] < gain[0] < gain[2]
