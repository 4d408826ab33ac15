"""Gaps between groups of users: exact where nothing differs, and given what users did."""

import numpy as np
import pytest
from scipy import stats

from llm_influence.analysis.audit_tests import gaps, same_history


def drawn(seed, users=120):
    random = np.random.default_rng(seed)
    return random, random.integers(0, 2, size=users), random.normal(size=(users, 3))


def test_of_two_groups_the_difference_is_that_of_their_means():
    _, groups, measures = drawn(0)
    found = gaps(measures, groups, None, shuffles=99, seed=0)
    for group in (0, 1):
        mine = measures[groups == group].mean(axis=0)
        np.testing.assert_allclose(found.means[group], mine)
        others = measures[groups != group].mean(axis=0)
        np.testing.assert_allclose(found.differences[group], mine - others)
    welch = stats.ttest_ind(measures[groups == 0], measures[groups == 1], equal_var=False)
    np.testing.assert_allclose(found.differences[0] / found.errors[0], welch.statistic, rtol=0.02)


def test_false_alarms_among_all_measures_are_as_rare_as_promised():
    lowest = []
    for seed in range(200):
        random, groups, _ = drawn(seed, users=60)
        measures = random.exponential(size=(60, 8)) * (1 + 2 * random.random(8))
        lowest.append(gaps(measures, groups, None, shuffles=99, seed=seed).p_values.min())
    assert np.mean(np.array(lowest) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_a_gap_that_the_history_explains_is_no_gap_among_equals():
    explained, unfair = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        taste = random.random(400)
        groups = (random.random(400) < 0.2 + 0.6 * taste).astype(int)
        facts = np.column_stack([taste, random.random(400)])
        got = np.exp(2 * taste) + random.normal(size=400)
        given = same_history(facts, groups)
        assert gaps(got[:, None], groups, None, shuffles=99, seed=0).p_values[0] == 0.01
        explained.append(gaps(got[:, None], groups, given, shuffles=99, seed=0).p_values[0])
        more = got + 0.5 * groups
        unfair.append(gaps(more[:, None], groups, given, shuffles=99, seed=0))
    assert np.mean(np.array(explained) <= 0.05) <= 0.125
    assert np.mean([found.p_values[0] <= 0.05 for found in unfair]) > 0.9
    assert np.mean([found.differences[1, 0] for found in unfair]) == pytest.approx(0.5, abs=0.06)


def test_three_groups_are_tested_together_and_labels_do_not_matter():
    random = np.random.default_rng(1)
    groups = random.integers(0, 3, size=150)
    measures = random.normal(size=(150, 2)) + (groups == 2)[:, None] * [1.0, 0.0]
    found = gaps(measures, groups, None, shuffles=199, seed=3)
    assert found.p_values[0] == 1 / 200
    assert found.p_values[1] > 0.05
    turned = gaps(measures, (groups + 1) % 3, None, shuffles=199, seed=3)
    np.testing.assert_allclose(turned.statistics, found.statistics)
    np.testing.assert_allclose(turned.differences[0], found.differences[2])
