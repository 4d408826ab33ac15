"""Shapley values on games: axioms, exact values, closed forms, convergence, honest errors."""

import functools
import re
from math import factorial

import numpy as np
import pytest

from llm_influence.attribution import shapley_process as coalition_process
from llm_influence.attribution.ablation import CoarseToFine
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.shapley import ExactShapley, PermutationShapley, Shapley, regress
from llm_influence.attribution.shapley_process import CoalitionKernel, estimate, plan
from llm_influence.errors import ExplanationError
from llm_influence.numerics import (
    by_leverage,
    certain_coalitions,
    every_coalition,
    shapley_weights,
)
from tests.attribution.stand_ins import game_task

LINEAR = functools.partial(Shapley, surrogate="linear", tolerance=0)
PROCESS = functools.partial(Shapley, surrogate="process", tolerance=0)
SAMPLED = pytest.mark.parametrize(
    "method", [PROCESS, LINEAR, PermutationShapley], ids=["process", "linear", "permutation"]
)


def table_game(seed, players, roughness=1.0):
    """Any game: main effects and random values for every coalition."""
    rng = np.random.default_rng(seed)
    main, rough = rng.normal(size=players), roughness * rng.normal(size=1 << players)
    return lambda masks: masks @ main + rough[masks @ (1 << np.arange(players))]


def smooth_game(seed, players):
    """Attention over events: each present event pulls with its own strength, the last one more."""
    rng = np.random.default_rng(seed)
    pull, value = np.exp(rng.normal(size=players)), rng.normal(size=players)

    def game(masks):
        last = masks & (masks[:, ::-1].cumsum(1)[:, ::-1] == 1)
        weight = masks * pull + 2.0 * last
        return np.tanh((weight @ value) / (weight.sum(1) + 1.0) * 2)

    return game


def by_definition(game, players):
    """Marginal contributions summed over all coalitions, written out."""
    masks, scores = every_coalition(players), np.zeros(players)
    for player in range(players):
        for mask in masks[~masks[:, player]]:
            size, joined = int(mask.sum()), mask.copy()
            joined[player] = True
            weight = factorial(size) * factorial(players - size - 1) / factorial(players)
            scores[player] += weight * (game(joined[None]) - game(mask[None]))[0]
    return scores


def run(method, game, players, **options):
    return method(**options).run(game_task([game], [players])).scores[0]


def relative_error(found, exact):
    return np.sqrt(np.mean((found - exact) ** 2)) / exact.std()


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_exact_is_the_definition(players):
    game = table_game(players, players)
    found = run(ExactShapley, game, players)
    np.testing.assert_allclose(found, by_definition(game, players), atol=1e-12)


def test_exact_refuses_a_long_history_by_name_and_says_what_to_do():
    task = game_task([table_game(0, 3), table_game(0, 5)], [3, 5], users=["short", "long"])
    with pytest.raises(ExplanationError, match=r"'long'.*32 coalitions.*at most 4.*'shapley'"):
        ExactShapley(max_players=4).run(task)
    assert ExactShapley(max_players=5).run(task).evaluations.tolist() == [8, 32]


@SAMPLED
@pytest.mark.parametrize("players", [1, 2, 4, 9])
def test_scores_add_up_at_any_budget(method, players):
    game = table_game(7, players)
    none, everything = game(np.array([[False] * players, [True] * players]))
    found = method(evaluations=40).run(game_task([game], [players]))
    assert found.scores[0].sum() == pytest.approx(everything - none, abs=1e-9)
    assert found.evaluations[0] <= 40
    assert found.prompt[0] == 0
    assert (found.base[0], found.full[0]) == (none, everything)


@pytest.mark.parametrize("method", [PROCESS, LINEAR], ids=["process", "linear"])
@pytest.mark.parametrize("players", [1, 2, 6])
def test_all_coalitions_give_the_exact_values(method, players):
    game = table_game(3, players)
    found = method(evaluations=1 << players).run(game_task([game], [players]))
    np.testing.assert_allclose(found.scores[0], by_definition(game, players), atol=1e-12)
    assert not found.standard_errors[0].any()


@pytest.mark.parametrize("surrogate", ["process", "linear"])
def test_the_estimators_themselves_are_exact_when_all_is_seen(surrogate):
    game, draw = table_game(4, 7, roughness=0.3), np.random.default_rng(0)
    masks = plan(draw, 7, 128) if surrogate == "process" else by_leverage(draw, 7, 128)
    assert len(masks) == 128
    values = game(masks)
    found = estimate(masks, values).scores if surrogate == "process" else regress(masks, values)
    np.testing.assert_allclose(found, by_definition(game, 7), atol=1e-8)


@pytest.mark.parametrize("method", [PROCESS, LINEAR], ids=["process", "linear"])
@pytest.mark.parametrize("players", [10, 40])
def test_an_additive_game_is_exact_with_the_fewest_evaluations(method, players):
    weights = np.random.default_rng(1).normal(size=players)
    task = game_task([lambda masks: 3 + masks @ weights], [players])
    found = method(evaluations=2 * players + 2).run(task)
    np.testing.assert_allclose(found.scores[0], weights, atol=1e-8)
    assert found.standard_errors[0].max() < 1e-8


def test_pair_effects_cancel_in_pairs():
    rng = np.random.default_rng(2)
    main, pairs = rng.normal(size=9), rng.normal(size=(9, 9))
    pairs = np.triu(pairs, 1)
    found = run(LINEAR, lambda m: m @ main + ((m @ pairs) * m).sum(1), 9, evaluations=60)
    np.testing.assert_allclose(found, main + (pairs.sum(0) + pairs.sum(1)) / 2, atol=1e-8)


@SAMPLED
def test_an_event_that_never_matters_gets_nothing_and_twins_get_the_same(method):
    def game(masks):  # player 1 does nothing; 0 and 3 are alike
        return np.tanh(masks[:, 0] + masks[:, 3] - 0.5 * masks[:, 2])

    scores = run(method, game, 4, evaluations=16 if method is not PermutationShapley else 4000)
    assert scores[1] == 0
    assert scores[0] == pytest.approx(scores[3], abs=0.02)
    assert abs(scores[0] - scores[2]) > 0.3


@pytest.mark.parametrize("method", [ExactShapley, LINEAR, PermutationShapley])
def test_the_scores_of_a_sum_are_the_sum_of_the_scores(method):
    one, two = table_game(1, 8), table_game(2, 8)
    both = run(method, lambda masks: 2 * one(masks) - 3 * two(masks), 8)
    np.testing.assert_allclose(both, 2 * run(method, one, 8) - 3 * run(method, two, 8), atol=1e-9)


def test_the_process_follows_units_and_offset():
    game = smooth_game(0, 10)
    plain = run(PROCESS, game, 10, evaluations=80)
    moved = run(PROCESS, lambda masks: 5 - 3 * game(masks), 10, evaluations=80)
    np.testing.assert_allclose(moved, -3 * plain, atol=1e-6)


def test_of_a_game_of_the_last_event_earlier_ones_get_their_share():
    worth = np.array([0.3, -1.0, 2.0, 0.5])  # f(S) = worth of the last of S: orders written out
    found = run(
        ExactShapley,
        lambda m: np.where(m.any(1), worth[m.shape[1] - 1 - m[:, ::-1].argmax(1)], 0.0),
        4,
    )
    share = [sum(worth[i] / (4 - i) * (i == j) for i in range(4)) for j in range(4)]
    for last, later in [(i, j) for i in range(4) for j in range(i + 1, 4)]:
        share[later] -= worth[last] / ((4 - last) * (3 - last))
    np.testing.assert_allclose(found, share, atol=1e-12)


# --- accuracy ------------------------------------------------------------------------------


@functools.cache
def errors(method, evaluations):
    """Median relative error over eight smooth games of ten players."""
    found = []
    for seed in range(8):
        game = smooth_game(seed, 10)
        exact = run(ExactShapley, game, 10)
        found.append(relative_error(run(method, game, 10, evaluations=evaluations), exact))
    return float(np.median(found))


@pytest.mark.parametrize(
    "method",
    [pytest.param(PROCESS, marks=pytest.mark.slow), LINEAR, PermutationShapley],
    ids=["process", "linear", "permutation"],
)
def test_more_evaluations_come_nearer(method):
    few, some, many = (errors(method, evaluations) for evaluations in (60, 200, 500))
    assert few > 1.2 * some > 1.2 * 1.2 * many


def test_the_process_beats_the_regression_and_that_beats_random_orders():
    assert errors(PROCESS, 100) < 0.5 * errors(LINEAR, 100)
    assert errors(LINEAR, 200) < errors(PermutationShapley, 200)


def test_a_long_game_of_pairs_is_near_its_closed_form():
    rng = np.random.default_rng(5)
    main, pairs = rng.normal(size=40), np.triu(rng.normal(size=(40, 40)), 1) * 0.1
    exact = main + (pairs.sum(0) + pairs.sum(1)) / 2
    found = run(PROCESS, lambda m: m @ main + ((m @ pairs) * m).sum(1), 40, evaluations=200)
    assert relative_error(found, exact) < 0.15


@SAMPLED
def test_nine_in_ten_true_values_lie_within_two_standard_errors(method):
    within = []
    for seed in range(20):
        game = smooth_game(seed, 9)
        exact = run(ExactShapley, game, 9)
        for evaluations in (100, 250):
            found = method(evaluations=evaluations).run(game_task([game], [9], seed=seed))
            assert (found.standard_errors[0] >= 0).all()
            within.append(np.abs(found.scores[0] - exact) <= 2 * found.standard_errors[0])
    assert 0.8 <= np.mean(within) <= 1.0
    if method is PROCESS:  # honest is not the same as wide
        assert np.median(found.standard_errors[0]) < 0.5 * exact.std()


def test_sampling_stops_when_the_errors_are_small_and_says_so():
    easy, hard = smooth_game(1, 10), table_game(1, 10, roughness=3.0)
    found = Shapley(evaluations=300, tolerance=0.1).run(game_task([easy, hard], [10, 10]))
    assert found.evaluations[0] < 300 == found.evaluations[1]
    assert found.converged.tolist() == [True, False]
    easy_error = found.standard_errors[0].max()
    assert easy_error <= 0.1 * found.scores[0].std()
    whole = Shapley(evaluations=300, tolerance=0).run(game_task([easy], [10]))
    assert whole.evaluations[0] == 300
    assert whole.standard_errors[0].max() < easy_error


def test_the_company_of_other_users_changes_nothing():
    games, sizes = [smooth_game(1, 10), table_game(2, 3), smooth_game(3, 25)], [10, 3, 25]
    names = ["a", "b", "c"]
    for method in (Shapley, LINEAR, PermutationShapley, CoarseToFine):
        together = method(evaluations=96).run(game_task(games, sizes, users=names))
        for row in range(3):
            task = game_task([games[row]], [sizes[row]], users=[names[row]])
            alone = method(evaluations=96).run(task)
            np.testing.assert_array_equal(alone.scores[0], together.scores[row])
            assert alone.evaluations[0] == together.evaluations[row]
        other = method(evaluations=96).run(game_task(games, sizes, users=names, seed=1))
        assert not np.array_equal(other.scores[2], together.scores[2])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"evaluations": 21}, r"21 evaluations for 10 events.*'u0'.*at least 22"),
        ({"evaluations": 0}, r"evaluations is 0"),
        ({"tolerance": -1.0}, r"tolerance is -1"),
        ({"surrogate": "linaer"}, r"surrogate is 'linaer'.*'linear'"),
    ],
)
def test_a_budget_that_cannot_do_is_refused(options, named):
    with pytest.raises(ExplanationError) as raised:
        Shapley(**options).run(game_task([smooth_game(0, 10)], [10]))
    text = str(raised.value)
    assert all(re.search(part, text) for part in named.split(".*"))


def test_a_real_model_is_explained_by_sampling_near_its_exact_values(bert, log):
    exact = Explainer(bert, "exact_shapley").explain(log.at(7))
    found = Explainer(bert, "shapley", evaluations=120, tolerance=0.0).explain(log.at(7))
    assert relative_error(found.values, exact.values) < 0.5
    assert found.quality.evaluations == 120
    assert found.quality.completeness_gap < 1e-6


# --- the parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("players", [1, 2, 6])
@pytest.mark.parametrize("last", [0.0, 1.5])
def test_the_closed_forms_of_the_kernel_are_the_sums_over_all_coalitions(players, last):
    kernel = CoalitionKernel(theta=0.6, width=0.8, last=last)
    masks = every_coalition(players)
    covariance, weights = kernel(masks, masks), shapley_weights(masks)
    assert np.linalg.eigvalsh(covariance).min() > 0
    np.testing.assert_allclose(kernel.shapley(masks), (weights.T @ covariance).T, atol=1e-12)
    variance = np.einsum("mi,mk,ki->i", weights, covariance, weights)
    np.testing.assert_allclose(kernel.shapley_variance(players), variance, atol=1e-12)


def test_the_process_is_the_textbook_one_conditioned_on_the_values(monkeypatch):
    monkeypatch.setattr(coalition_process, "ROUGH", (0.05,))
    kernel, every = CoalitionKernel(0.6, 0.8, 0.7), every_coalition(4)
    seen = np.r_[0, 15, 1, 2, 4, 8, 7, 11, 13, 14, 5]
    values, weights = table_game(6, 4)(every[seen]), shapley_weights(every)
    trend = np.column_stack([np.ones(16), every])
    prior = kernel(every, every) + 0.05 * np.eye(16) + 1e6 * trend @ trend.T  # nothing known of it
    gain = np.linalg.solve(prior[np.ix_(seen, seen)], prior[seen]).T
    scale = values @ np.linalg.solve(prior[np.ix_(seen, seen)], values) / (len(seen) - 5)
    left = scale * (prior - gain @ prior[seen])
    found = estimate(every[seen], values, [kernel])
    np.testing.assert_allclose(found.scores, weights.T @ gain @ values, rtol=1e-4)
    variance = np.einsum("mi,mk,ki->i", weights, left, weights)
    np.testing.assert_allclose(found.standard_errors, np.sqrt(variance), rtol=1e-3)


@pytest.mark.parametrize("players", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("number", [60, 200])
@pytest.mark.parametrize("draw_masks", [plan, by_leverage])
def test_coalitions_are_distinct_and_begin_with_the_certain_ones(players, number, draw_masks):
    number = max(number, 2 * players + 2)
    masks = draw_masks(np.random.default_rng(0), players, number)
    assert len(masks) == min(number, 1 << players)
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    certain = certain_coalitions(players)
    np.testing.assert_array_equal(masks[: len(certain)], certain)


def test_leverage_draws_whole_pairs_evenly_over_sizes():
    masks = by_leverage(np.random.default_rng(0), 12, 300)
    known = {mask.tobytes() for mask in masks}
    assert all((~mask).tobytes() in known for mask in masks)
    counts = np.bincount(masks.sum(1), minlength=13)
    assert counts[[1, 11]].tolist() == [12, 12]
    assert np.ptp(counts[2:6]) <= 1
