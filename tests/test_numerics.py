"""Shared numerical functions against definitions and libraries."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from llm_influence.numerics import every_coalition, exact_shapley, spearman, splitmix64


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
