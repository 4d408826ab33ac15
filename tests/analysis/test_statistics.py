"""Tests over users: differences between groups, associations, corrections and resampling."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from llm_influence.analysis.audit_users import Kind
from llm_influence.analysis.statistics import (
    associations,
    group_auc,
    group_differences,
    history_controls,
    holm,
    user_weights,
)


def drawn(seed, users=120):
    random = np.random.default_rng(seed)
    return random, random.integers(0, 2, size=users), random.normal(size=(users, 3))


def test_of_two_groups_the_difference_is_that_of_their_means():
    _, groups, measures = drawn(0)
    found = group_differences(measures, groups, None, shuffles=99, seed=0)
    for group in (0, 1):
        mine = measures[groups == group].mean(axis=0)
        np.testing.assert_allclose(found.means[group], mine)
        others = measures[groups != group].mean(axis=0)
        np.testing.assert_allclose(found.differences[group], mine - others)
    welch = stats.ttest_ind(measures[groups == 0], measures[groups == 1], equal_var=False)
    np.testing.assert_allclose(found.differences[0] / found.errors[0], welch.statistic, rtol=0.02)


@pytest.mark.slow
def test_false_alarms_among_all_measures_are_as_rare_as_promised():
    lowest = []
    for seed in range(200):
        random, groups, _ = drawn(seed, users=60)
        measures = random.exponential(size=(60, 8)) * (1 + 2 * random.random(8))
        lowest.append(
            group_differences(measures, groups, None, shuffles=99, seed=seed).p_values.min()
        )
    assert np.mean(np.array(lowest) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_a_gap_that_the_history_explains_is_no_gap_among_equals():
    explained, unfair = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        taste = random.random(400)
        groups = (random.random(400) < 0.2 + 0.6 * taste).astype(int)
        facts = np.column_stack([taste, random.random(400)])
        got = np.exp(2 * taste) + random.normal(size=400)
        given = history_controls(facts, groups)
        assert (
            group_differences(got[:, None], groups, None, shuffles=99, seed=0).p_values[0] == 0.01
        )
        explained.append(
            group_differences(got[:, None], groups, given, shuffles=99, seed=0).p_values[0]
        )
        more = got + 0.5 * groups
        unfair.append(group_differences(more[:, None], groups, given, shuffles=99, seed=0))
    assert np.mean(np.array(explained) <= 0.05) <= 0.15
    assert np.mean([found.p_values[0] <= 0.05 for found in unfair]) > 0.9
    assert np.mean([found.differences[1, 0] for found in unfair]) == pytest.approx(0.5, abs=0.06)


def test_three_groups_are_tested_together_and_labels_do_not_matter():
    random = np.random.default_rng(1)
    groups = random.integers(0, 3, size=150)
    measures = random.normal(size=(150, 2)) + (groups == 2)[:, None] * [1.0, 0.0]
    found = group_differences(measures, groups, None, shuffles=199, seed=3)
    assert found.p_values[0] == 1 / 200
    assert found.p_values[1] > 0.05
    turned = group_differences(measures, (groups + 1) % 3, None, shuffles=199, seed=3)
    np.testing.assert_allclose(turned.statistics, found.statistics)
    np.testing.assert_allclose(turned.differences[0], found.differences[2])


def ranks_of(counts, name="item_id"):
    levels = tuple(f"l{place}" for place in range(counts.shape[1]))
    amounts = counts.astype(float)
    kind = Kind(name, levels, amounts, amounts, amounts, "null")
    return kind.ranks(np.arange(len(counts)))


def test_strength_is_cramers_v_of_what_is_there_or_not():
    random = np.random.default_rng(0)
    groups = random.integers(0, 3, size=300)
    there = random.random((300, 2)) < np.column_stack(
        [0.2 + 0.3 * (groups == 1), np.full(300, 0.4)]
    )
    found = associations(ranks_of(there), groups, shuffles=199, seed=0)
    table = np.array([[(there[:, 0] == s)[groups == g].sum() for g in range(3)] for s in (0, 1)])
    chi_square = stats.chi2_contingency(table, correction=False).statistic
    assert found.strengths[0] == pytest.approx(np.sqrt(chi_square / 300))
    assert found.p_values[0] == 1 / 200
    assert found.p_values[1] > 0.05
    assert found.group[0] == 1


def test_strength_of_amounts_is_kruskals_and_the_auc_mann_and_whitneys():
    random = np.random.default_rng(1)
    groups = random.integers(0, 2, size=200)
    counts = random.poisson(3 + 2 * groups[:, None] * [1, 0], size=(200, 2)) + 1
    found = associations(ranks_of(counts, "behavior"), groups, shuffles=99, seed=0)
    shares = counts[:, 0] / counts.sum(axis=1)
    kruskal = stats.kruskal(shares[groups == 0], shares[groups == 1]).statistic
    assert found.strengths[0] ** 2 == pytest.approx(kruskal / 199)
    assert found.aucs[0] == pytest.approx(roc_auc_score(groups, shares))


def test_no_level_that_is_rare_or_everywhere_tells_anything():
    groups = np.arange(100) % 2
    there = np.column_stack([np.arange(100) < 5, np.ones(100), groups])
    found = associations(ranks_of(there), groups, shuffles=99, seed=0)
    assert found.strengths.tolist() == pytest.approx([0, 0, 1])
    assert (found.p_values <= 0.05).tolist() == [False, False, True]


def test_what_the_history_tells_is_measured_on_unseen_users():
    random = np.random.default_rng(2)
    groups = random.integers(0, 2, size=200)
    assert abs(group_auc(random.normal(size=(200, 20)), groups, 0) - 0.5) < 0.1
    facts = random.normal(size=(200, 2)) + 2 * groups[:, None]
    assert group_auc(facts, groups, 0) > 0.95


def test_holm_is_that_of_statsmodels_and_leaves_out_what_was_not_tested():
    values = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    known = ~np.isnan(values)
    assert holm(values)[known] == pytest.approx(multipletests(values[known], method="holm")[1])
    assert np.isnan(holm(values)[1])


def test_a_user_counts_alike_in_every_batch_and_a_poisson_number_of_times():
    users = np.arange(4000)
    weights = user_weights(users, 50, seed=3)
    assert (weights[:, 0] == 1).all()
    np.testing.assert_array_equal(user_weights(users[7:9], 50, seed=3), weights[7:9])
    assert not np.array_equal(user_weights(users, 50, seed=4), weights)
    drawn = weights[:, 1:]
    assert drawn.mean() == pytest.approx(1, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.02)
    assert (drawn == 0).mean() == pytest.approx(math.exp(-1), abs=0.005)
    across = np.corrcoef(drawn.T) - np.eye(50)
    assert np.abs(across).max() < 0.08
