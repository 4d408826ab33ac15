"""Shared numerical functions against definitions and libraries."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from llm_influence.numerics import (
    bootstrap_interval,
    every_coalition,
    exact_shapley,
    spearman,
    splitmix64,
)


def test_exact_shapley_is_the_mean_over_all_orders():
    values = np.random.default_rng(0).normal(size=(3, 16))
    expected = np.zeros((3, 4))
    for order in permutations(range(4)):
        before = 0
        for player in order:
            after = before | 1 << player
            expected[:, player] += (values[:, after] - values[:, before]) / 24
            before = after
    np.testing.assert_allclose(exact_shapley(values), expected, atol=1e-12)
    np.testing.assert_allclose(exact_shapley(values[1]), expected[1], atol=1e-12)


def test_bits_of_the_row_number_are_the_members_of_a_coalition():
    masks = every_coalition(3)
    assert masks.shape == (8, 3)
    assert (masks @ (1 << np.arange(3))).tolist() == list(range(8))


def test_spearman_is_that_of_scipy_and_says_so_where_there_is_none():
    draw = np.random.default_rng(1)
    values, scores = draw.normal(size=(2, 20))
    assert spearman(values, scores) == pytest.approx(spearmanr(values, scores).statistic)
    flat = np.full(20, 3.0) + 1e-9 * draw.normal(size=20)
    assert np.isnan(spearman(flat, scores))
    assert np.isnan(spearman(values, flat))
    assert np.isnan(spearman(values[:2], scores[:2]))
    assert spearman(values, flat, if_scores_constant=0.0) == 0
    assert np.isnan(spearman(flat, flat, if_scores_constant=0.0))


def test_splitmix64_gives_the_published_stream():
    # first outputs of the reference implementation with state 0
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64(states).tolist() == first


def test_an_interval_of_independent_rows_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, size=4000)
    low, high = bootstrap_interval(values, np.arange(4000))
    error = values.std() / np.sqrt(4000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_rows_of_one_user_count_as_one_draw():
    """Each value stands four times: four times the rows, the same certainty."""
    values = np.random.default_rng(1).normal(size=300)
    once = bootstrap_interval(values, np.arange(300))
    four = bootstrap_interval(np.repeat(values, 4), np.repeat(np.arange(300) * 7, 4))
    assert four == pytest.approx(once)
    alone = bootstrap_interval(np.repeat(values, 4), np.arange(1200))
    assert alone[1] - alone[0] < 0.6 * (once[1] - once[0])


def test_users_weigh_by_their_rows():
    values, groups = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 1])
    assert bootstrap_interval(values, groups, draws=2000) == (0.0, 1.0)
    middle = bootstrap_interval(values, groups, draws=2000, level=0.1)
    assert middle == (0.75, 0.75)


def test_the_seed_decides():
    values = np.random.default_rng(2).normal(size=50)
    groups = np.arange(50)
    assert bootstrap_interval(values, groups, seed=1) == bootstrap_interval(values, groups, seed=1)
    assert bootstrap_interval(values, groups, seed=1) != bootstrap_interval(values, groups, seed=2)
