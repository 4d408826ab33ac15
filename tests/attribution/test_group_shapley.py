"""Group Shapley: known games, few evaluations, one block for all that is weak."""

import numpy as np
import pytest

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.group_shapley import GroupShapley
from llm_influence.attribution.target import Item
from llm_influence.errors import ExplanationError
from llm_influence.numerics import every_coalition, exact_shapley
from tests.attribution.stand_ins import FAST, game_task, model_of


def needles(players, places):
    """A game in which few events matter, with a pair effect between the first two."""
    worth = np.full(players, 1e-3)
    worth[list(places)] = np.arange(2.0, 2.0 + len(places))
    first, second = places[:2]
    return worth, lambda masks: masks @ worth + masks[:, first] * masks[:, second]


@pytest.mark.parametrize("players", [50, 200])
def test_needles_are_found_and_the_rest_is_one_block(players):
    places = (7, 30, 31, 44)
    worth, game = needles(players, places)
    found = GroupShapley(alone=4).run(game_task([game], [players]))
    assert found.evaluations[0] <= 32 + min(players, 2 * (4 * players) ** 0.5 + 2)
    (block,) = found.blocks
    assert sorted({*range(players)} - {*block}) == list(places)
    np.testing.assert_allclose(found.scores[0][[31, 44]], worth[[31, 44]], atol=1e-8)
    np.testing.assert_allclose(found.scores[0][[7, 30]], worth[[7, 30]] + 0.5, atol=1e-8)
    np.testing.assert_allclose(found.scores[0][list(block)], 1e-3, atol=1e-8)
    assert found.standard_errors[0].max() == 0  # 2^5 coalitions: exact
    assert found.converged[0]


def test_a_short_history_has_no_block_and_its_exact_values():
    table = np.random.default_rng(0).normal(size=2**6)
    whole = every_coalition(6)
    order = {mask.tobytes(): value for mask, value in zip(whole, table, strict=True)}
    task = game_task([lambda masks: np.array([order[mask.tobytes()] for mask in masks])], [6])
    found = GroupShapley(alone=5).run(task)
    assert found.blocks == [()]
    np.testing.assert_allclose(found.scores[0], exact_shapley(table), atol=1e-12)


def test_players_are_scored_as_in_the_game_of_the_groups():
    """Exact values of the game whose players are two events and the block of the others."""
    _, game = needles(12, (3, 9))
    rough = np.random.default_rng(1).normal(size=(12, 12))
    task = game_task([lambda m: game(m) + 0.01 * np.sin(m @ rough).sum(1)], [12])
    found = GroupShapley(alone=2).run(task)
    (block,) = found.blocks
    groups = np.zeros(12, dtype=int)
    groups[[3, 9]] = 1, 2
    assert block == tuple(np.flatnonzero(groups == 0))
    expected = exact_shapley(task([every_coalition(3)[:, groups]])[0])
    np.testing.assert_allclose(found.scores[0][[3, 9]], expected[1:], atol=1e-10)
    assert found.scores[0][list(block)].sum() == pytest.approx(expected[0])


def test_errors_beyond_the_tolerance_are_said():
    rough = np.random.default_rng(0).normal(size=(40, 40))
    task = game_task([lambda masks: 3 * np.sin(masks @ rough).sum(1)], [40])
    found = GroupShapley(evaluations=24).run(task)
    assert not found.converged[0]
    assert found.standard_errors[0].max() > 0.05 * np.abs(found.scores[0]).max()


def test_scores_of_a_real_model_add_up_and_do_not_depend_on_the_batch(log):
    model = model_of(*FAST[0])
    histories = [model.encoder.trim(log.at(row)) for row in range(6)]
    explain = {
        size: Explainer(model, GroupShapley(alone=3), batch_size=size).explain(
            histories, Item("i7")
        )
        for size in (1, 4)
    }
    for alone, together in zip(explain[1], explain[4], strict=True):
        np.testing.assert_allclose(alone.values, together.values, atol=1e-5)
        assert alone.block == together.block
        assert alone.values.sum() == pytest.approx(alone.full_value - alone.base_value, abs=1e-4)
        assert len(alone.block) == max(0, len(alone.events) - 3 if len(alone.events) > 4 else 0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alone": 0}, "alone is 0"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"evaluations": 10}, "least 20"),
    ],
)
def test_options_that_cannot_do_are_refused(options, named):
    with pytest.raises(ExplanationError, match=named):
        GroupShapley(**options).run(game_task([needles(100, (1, 2))[1]], [100]))
