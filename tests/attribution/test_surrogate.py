"""The sparse surrogate: what it selects, what it weighs, what it is not."""

import numpy as np
import pytest

from llm_influence.attribution.ablation import sparse_surrogate
from llm_influence.errors import ExplanationError
from llm_influence.numerics import every_coalition
from tests.attribution.stand_ins import game_task


def test_few_events_are_found_among_many_with_fewer_passes_than_events():
    worth = np.zeros(120)
    worth[[4, 50, 99]] = 2.0, -1.5, 3.0
    noise = np.random.default_rng(0)

    def game(masks):
        return masks @ worth + 0.01 * noise.normal(size=len(masks))

    found = sparse_surrogate(game_task([game], [120]), evaluations=100)
    assert set(np.argsort(-np.abs(found.scores[0]))[:3]) == {4, 50, 99}
    np.testing.assert_allclose(found.scores[0], worth, atol=0.05)
    assert (found.scores[0] == 0).sum() > 60
    assert found.evaluations[0] <= 102


def test_with_all_sets_asked_it_is_the_best_line_and_no_shapley_value():
    def game(masks):  # unanimity of three: Shapley 1/3 each, the best line has 1/4
        return masks[:, :3].all(1).astype(float)

    found = sparse_surrogate(game_task([game], [5]), evaluations=32).scores[0]
    masks = every_coalition(5)
    line = np.linalg.lstsq(np.column_stack([np.ones(32), masks]), game(masks), rcond=None)[0]
    np.testing.assert_allclose(found, line[1:], atol=1e-9)
    np.testing.assert_allclose(found, [0.25, 0.25, 0.25, 0, 0], atol=1e-9)


@pytest.mark.parametrize("players", [1, 2, 3])
def test_short_histories_are_weighed_too(players):
    worth = np.arange(1.0, players + 1)
    found = sparse_surrogate(game_task([lambda m: m @ worth], [players]))
    np.testing.assert_allclose(found.scores[0], worth, atol=1e-9)


def test_too_few_passes_are_refused():
    with pytest.raises(ExplanationError, match=r"9 evaluations for 20 events.*at least 10"):
        sparse_surrogate(game_task([lambda m: m.sum(1)], [20]), evaluations=9)
