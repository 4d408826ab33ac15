import numpy as np
import pytest

from benchmarks.peers.metrics import auc
from benchmarks.statistics import (
    auc_draws,
    compared,
    mean_draws,
    mean_interval,
    mean_over_users_and_seeds,
    median_interval,
    over_seeds,
)


def test_student_interval_of_three_runs():
    # sd 1, three runs: half width 4.3027 / sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)
    with pytest.raises(ValueError, match="1 values"):
        mean_interval([0.1])


def test_the_interval_of_a_median_holds_it_and_is_a_point_where_all_values_are_equal():
    value, low, high = median_interval(list(np.random.default_rng(0).normal(size=80)))
    assert low < value < high < low + 1
    assert median_interval([2.0, 2.0]) == (2, 2, 2)


def test_bootstrap_draws_the_same_users_for_both():
    ours, users = np.random.default_rng(0).random(200), np.arange(200)
    one, other = mean_draws(np.stack([ours, ours / 2]), users)
    difference, ratio = compared(ours.mean(), ours.mean() / 2, one, other)
    assert ratio == pytest.approx((2, 2, 2))  # exact only when paired
    assert difference[1] < ours.mean() / 2 < difference[2]


def test_an_interval_over_users_and_seeds_is_wider_where_seeds_differ():
    values, users = np.random.default_rng(0).normal(size=300), np.arange(300)
    alike = mean_over_users_and_seeds(np.stack([values] * 3), users)
    apart = mean_over_users_and_seeds(np.stack([values - 1, values, values + 1]), users)
    assert alike[0] == pytest.approx(apart[0])
    half = 1.96 * values.std() / np.sqrt(300)
    assert (alike[2] - alike[1]) / 2 == pytest.approx(half, rel=0.1)
    assert apart[2] - apart[1] > 3 * (alike[2] - alike[1])


def test_a_draw_of_users_is_the_auc_of_their_rows():
    random = np.random.default_rng(2)
    users = random.integers(0, 7, 90) * 3
    labels, scores = random.random(90) < 0.5, random.integers(0, 20, 90).astype(float)
    drawn_aucs = auc_draws(labels, scores, users, draws=5, seed=4)
    names, again = np.unique(users), np.random.default_rng(4)
    for value, drawn in zip(
        drawn_aucs, again.integers(len(names), size=(5, len(names))), strict=True
    ):
        rows = np.concatenate([np.flatnonzero(users == names[user]) for user in drawn])
        assert value == pytest.approx(auc(labels[rows], scores[rows]))


def test_a_system_differs_from_itself_by_nothing_and_a_better_one_by_more():
    random = np.random.default_rng(0)
    labels, users = random.integers(0, 2, 400) == 1, np.repeat(np.arange(40), 10)
    noise = random.normal(size=(2, 400))
    worse, better = (
        over_seeds(np.stack([auc_draws(labels, run, users, draws=200) for run in runs]))
        for runs in (noise + 0.5 * labels, noise + 2 * labels)
    )
    assert compared(0.6, 0.6, worse, worse)[0] == (0, 0, 0)
    assert compared(0.9, 0.6, better, worse)[0][1] > 0
