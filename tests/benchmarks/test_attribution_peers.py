"""The peers of the attribution benchmark explain the function that we explain."""

import numpy as np
import pytest
import torch

pytest.importorskip("captum")
pytest.importorskip("shap")

from benchmarks.attribution import captum_peer
from benchmarks.attribution.case import Case
from benchmarks.attribution.games import MemoryGame, TableGame, load_games, save_games
from benchmarks.attribution.masked_function import TableFunction
from benchmarks.attribution.shapley import PEERS, smallest
from benchmarks.attribution.shapley_estimators import OddKernel
from benchmarks.attribution.truth import (
    PairGame,
    coalition_table,
    long_estimate,
    permutation_shapley,
    relative_rmse,
)
from llm_influence.attribution.registry import Task
from llm_influence.attribution.shapley_process import estimate, kernels
from llm_influence.attribution.target import TOP, bind
from llm_influence.numerics import exact_shapley
from tests import tiny

BITS = (np.arange(64)[:, None] >> np.arange(6)) & 1


@pytest.fixture(scope="module")
def case():
    model, history = tiny.tiny_model("bert", "token"), tiny.small_log()["u3"]
    return Case(model, history, bind(TOP, model, [history]))


def random_game():
    """A table of 2^6 values with strong interactions."""
    draw = np.random.default_rng(0)
    return TableFunction(BITS @ draw.normal(size=6) + draw.normal(size=64))


def test_shapley_values_split_a_pair_effect_in_half():
    weights = np.array([1.0, -2.0, 0.5, 0.0, 3.0, 0.0])
    scores = exact_shapley(7.0 + BITS @ weights + 4.0 * BITS[:, 0] * BITS[:, 5])

    assert scores == pytest.approx([3.0, -2.0, 0.5, 0.0, 3.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_comes_to_the_exact_values(peer):
    game = random_game()
    truth = exact_shapley(coalition_table(game))

    few, many = (
        relative_rmse(PEERS[peer](game, evaluations, 0), truth) for evaluations in (30, 6000)
    )

    assert many < 0.1 < few


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_spends_about_the_passes_it_is_given(peer):
    game = TableFunction(np.random.default_rng(1).normal(size=1024))
    PEERS[peer](game, 200, 0)

    assert game.evaluations == pytest.approx(200, abs=11)


def test_permutations_say_how_far_they_are_off():
    game = random_game()
    truth = exact_shapley(coalition_table(game))

    mean, error = permutation_shapley(game, 6000, seed=0)

    assert (np.abs(mean - truth) < 4 * error).all()
    assert mean.sum() == pytest.approx(truth.sum())


def test_a_game_of_pairs_is_fitted_whole_and_its_shapley_values_are_exact():
    draw = np.random.default_rng(2)
    made = PairGame(*np.triu(draw.normal(size=(2, 6, 6))))
    masks = BITS.astype(bool)

    found = PairGame.fit(masks, made.values(masks) + 3.0, ridge=1e-9)

    np.testing.assert_allclose(np.ptp(found.values(masks) - made.values(masks)), 0, atol=1e-5)
    np.testing.assert_allclose(made.shapley(), exact_shapley(made.values(masks)), atol=1e-12)


def test_the_long_reference_knows_its_own_error(case):
    size = len(case.history)
    truth = exact_shapley(coalition_table(case.function(4096)))

    found = [long_estimate(case, evaluations=40 * size, seed=seed) for seed in range(4)]

    worst = max(each.error for each in found)
    assert 0 < worst < 0.6
    mean = np.mean([each.scores for each in found], axis=0)
    assert relative_rmse(mean, truth) < worst  # four runs: half of one's error, no bias beside it


@pytest.mark.parametrize("token_budget", [1, 40, 4096])
def test_the_peers_function_gives_the_engines_values(case, token_budget):
    masks = np.random.default_rng(0).random((20, len(case.history))) < 0.5
    engine = Task(case.model, [case.history], case.target, "drop", 0).values
    function = case.function(token_budget)

    assert function(masks) == pytest.approx(engine([masks])[0], abs=1e-5)
    assert function.evaluations == 20


@pytest.mark.parametrize("per_eval", [1, 3, 50])
def test_feature_ablation_is_leave_one_out(case, per_eval):
    ours, _ = case.ours("leave_one_out")

    theirs = captum_peer.feature_ablation(case.function(4096), per_eval)

    assert theirs == pytest.approx(ours.scores, abs=1e-5)


def test_captum_walks_from_our_baseline_to_our_scores(case):
    ours, found = case.ours("integrated_gradients", steps=50, baseline="mean")
    path = captum_peer.PathInputs(case.model, case.history, case.target, captum_peer.mean_baseline)

    theirs, frame = captum_peer.integrated_gradients(path, steps=50, internal_batch_size=10)

    with torch.no_grad():
        assert float(path.value(path.baselines)) == pytest.approx(found.base[0], abs=1e-5)
    assert theirs == pytest.approx(ours.scores, abs=1e-4)
    assert frame == pytest.approx(found.prompt[0], abs=1e-4)


def test_the_search_ends_within_an_eighth_root_of_two():
    asked = []

    def enough(evaluations):
        asked.append(evaluations)
        return evaluations >= 1000

    found = smallest(enough, first=22, most=40_000)

    assert 1000 <= found <= 1000 * 2 ** (1 / 8) + 1
    assert len(asked) < 12
    assert smallest(lambda _: False, first=22, most=100) is None


def test_games_for_other_environments_keep_their_values_in_a_file(tmp_path):
    table = np.random.default_rng(3).normal(size=64)
    games = [TableGame(table, exact_shapley(table)), MemoryGame.drawn(6, seed=0)]
    save_games(games, tmp_path / "games.npz")

    for game, read in zip(games, load_games(tmp_path / "games.npz"), strict=True):
        assert type(read) is type(game)
        np.testing.assert_array_equal(read.values(BITS == 1), game.values(BITS == 1))
        np.testing.assert_array_equal(read.shapley, game.shapley)


def test_shapley_values_of_the_memorys_game_are_within_their_error():
    game = MemoryGame.drawn(6, seed=1)

    assert relative_rmse(game.shapley, exact_shapley(game.values(BITS == 1))) < 3 * game.error


def test_the_odd_projected_covariance_is_exact_with_all_coalitions():
    table = np.random.default_rng(4).normal(size=64)
    among = [OddKernel(kernel) for kernel in kernels(6)]

    found = estimate(BITS == 1, table, among)

    np.testing.assert_allclose(found.scores, exact_shapley(table), atol=1e-8)
