"""Bootstrap intervals against theory."""

import numpy as np
import pytest

from llm_influence.evaluation.metrics import bootstrap_interval


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
