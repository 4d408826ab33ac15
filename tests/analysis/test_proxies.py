"""Proxies: their strength is a known statistic, and chance makes none."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from llm_influence.analysis.audit_tests import find_proxies, told_by_history
from llm_influence.analysis.audit_users import Kind


def kind(counts, name="item_id"):
    levels = tuple(f"l{place}" for place in range(counts.shape[1]))
    amounts = counts.astype(float)
    return Kind(name, levels, amounts, amounts, amounts, "null")


def test_strength_is_cramers_v_of_what_is_there_or_not():
    random = np.random.default_rng(0)
    groups = random.integers(0, 3, size=300)
    there = random.random((300, 2)) < np.column_stack(
        [0.2 + 0.3 * (groups == 1), np.full(300, 0.4)]
    )
    found = find_proxies([kind(there)], groups, shuffles=199, seed=0)
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
    found = find_proxies([kind(counts, "behavior")], groups, shuffles=99, seed=0)
    shares = counts[:, 0] / counts.sum(axis=1)
    kruskal = stats.kruskal(shares[groups == 0], shares[groups == 1]).statistic
    assert found.strengths[0] ** 2 == pytest.approx(kruskal / 199)
    assert found.aucs[0] == pytest.approx(roc_auc_score(groups, shares))


def test_no_level_that_is_rare_or_everywhere_tells_anything():
    groups = np.arange(100) % 2
    there = np.column_stack([np.arange(100) < 5, np.ones(100), groups])
    found = find_proxies([kind(there)], groups, shuffles=99, seed=0)
    assert found.strengths.tolist() == pytest.approx([0, 0, 1])
    assert found.weights(0.05)["item_id"].tolist() == pytest.approx([0, 0, 1])


def test_what_the_history_tells_is_measured_on_unseen_users():
    random = np.random.default_rng(2)
    groups = random.integers(0, 2, size=200)
    assert abs(told_by_history(random.normal(size=(200, 20)), groups, 0) - 0.5) < 0.1
    facts = random.normal(size=(200, 2)) + 2 * groups[:, None]
    assert told_by_history(facts, groups, 0) > 0.95
