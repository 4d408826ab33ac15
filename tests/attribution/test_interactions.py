"""Pair interactions: recovered where they are, withheld where they are not."""

import numpy as np
import pytest

from llm_influence.attribution.interactions import fit_interactions, interactions
from tests.attribution.stand_ins import game_task


def banzhaf(game, players, i, j):
    """The interaction index, written out over all sets of the others."""
    total = 0.0
    for number in range(1 << players):
        mask = np.array([number >> place & 1 for place in range(players)], dtype=bool)
        if mask[i] or mask[j]:
            continue
        four = np.stack([mask] * 4)
        four[[1, 3], i] = True
        four[[2, 3], j] = True
        none, one, other, both = game(four)
        total += both - one - other + none
    return total / 2 ** (players - 2)


def test_pairs_of_a_known_game_are_found():
    rng = np.random.default_rng(0)
    main, pairs = rng.normal(size=12), np.zeros((12, 12))
    pairs[2, 5], pairs[0, 11], pairs[7, 8] = 2.0, -1.5, 1.0
    game = lambda masks: masks @ main + ((masks @ pairs) * masks).sum(1)  # noqa: E731
    [found] = fit_interactions(game_task([game], [12]), ["u0"], evaluations=256)
    np.testing.assert_allclose(found.pairs, pairs + pairs.T, atol=0.05)
    assert found.pair_r2 > 0.99 > found.additive_r2
    assert found.evaluations == 256


def test_all_sets_give_the_index_of_any_game():
    table = np.random.default_rng(1).normal(size=64)
    game = lambda m: table[m @ (1 << np.arange(6))] + 4 * m[:, 1] * m[:, 4]  # noqa: E731
    [found] = fit_interactions(game_task([game], [6]), ["u0"], evaluations=64)
    assert found.pairs[1, 4] == pytest.approx(banzhaf(game, 6, 1, 4), rel=0.25)
    assert np.unravel_index(np.abs(found.pairs).argmax(), (6, 6)) == (1, 4)
    assert (found.pairs == found.pairs.T).all()
    assert not found.pairs.diagonal().any()


def test_pairs_that_do_not_help_are_not_shown():
    rng = np.random.default_rng(2)
    main = rng.normal(size=20)
    noisy = np.random.default_rng(3)
    game = lambda masks: masks @ main + 0.5 * noisy.normal(size=len(masks))  # noqa: E731
    [found] = fit_interactions(game_task([game], [20]), ["u0"], evaluations=100)
    assert found.pairs is None
    assert found.pair_r2 <= found.additive_r2


@pytest.mark.parametrize("players", [1, 2])
def test_too_short_to_tell(players):
    [found] = fit_interactions(game_task([lambda m: m.sum(1) * 1.0], [players]), ["u0"])
    assert found.pairs is None
    assert np.isnan(found.pair_r2)


def test_a_model_is_asked_the_same_alone_and_in_company(bert, log):
    histories = [log.at(3), log.at(0)]
    both = interactions(bert, histories, "i7", evaluations=40)
    [alone] = interactions(bert, histories[1:], "i7", evaluations=40)
    assert both[1].user_id == alone.user_id == "u0"
    assert both[1].additive_r2 == pytest.approx(alone.additive_r2, abs=1e-4)
    assert both[1].pair_r2 == pytest.approx(alone.pair_r2, abs=1e-4)
