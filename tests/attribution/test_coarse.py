"""Coarse to fine: blocks that matter are opened, nothing is lost, closed blocks share."""

import numpy as np
import pytest

from llm_influence.attribution.ablation import coarse_to_fine
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.shapley import shapley
from llm_influence.attribution.target import Contrast
from llm_influence.errors import ExplanationError
from tests.attribution.stand_ins import bag_model, game_task, typed, weights


def needles(players, places):
    """An additive game in which few events matter, with a pair effect between the first two."""
    worth = np.full(players, 1e-3)
    worth[list(places)] = np.arange(2.0, 2.0 + len(places))
    first, second = places[:2]
    return worth, lambda masks: masks @ worth + masks[:, first] * masks[:, second]


def test_needles_in_a_long_history_are_found_and_scored():
    places = (7, 90, 91, 140)
    worth, game = needles(200, places)
    found = coarse_to_fine(game_task([game], [200]), evaluations=300, blocks=20)
    assert found.evaluations[0] <= 300
    assert set(np.argsort(-found.scores[0])[:4]) == set(places)
    np.testing.assert_allclose(found.scores[0][[91, 140]], worth[[91, 140]], atol=0.15)
    np.testing.assert_allclose(found.scores[0][[7, 90]], worth[[7, 90]] + 0.5, atol=0.15)
    assert found.scores[0].sum() == pytest.approx(worth.sum() + 1, abs=1e-8)
    closed = found.scores[0][20:30]
    assert (closed == closed[0]).all()


def test_a_history_with_four_passes_an_event_is_explained_event_by_event():
    _, game = needles(10, (1, 2))
    whole = shapley(game_task([game], [10]), evaluations=40, tolerance=0)
    found = coarse_to_fine(game_task([game], [10]), evaluations=40)
    np.testing.assert_array_equal(found.scores[0], whole.scores[0])


def test_blocks_open_by_strength_as_far_as_the_passes_go():
    rng = np.random.default_rng(0)
    worth = np.repeat([5.0, 0.1, 3.0, 0.1, 4.0], 20) * (1 + 0.1 * rng.normal(size=100))
    found = coarse_to_fine(
        game_task([lambda masks: masks @ worth], [100]), evaluations=150, blocks=5
    )  # room for 25 players: one block of 20 and the other four whole
    np.testing.assert_allclose(found.scores[0][:20], worth[:20], atol=1e-6)
    np.testing.assert_allclose(found.scores[0][80:], worth[80:].mean(), atol=1e-6)


def test_events_of_a_real_model_get_their_weights():
    model, history = bag_model(), typed(*(f"i{n}" for n in (3, 9, 4, 12, 8, 1, 2, 11)))
    found = Explainer(model, "coarse_to_fine", evaluations=30, blocks=2, share=1.0).explain(
        history, Contrast("i5", "i6")
    )
    assert found.scores.sum() == pytest.approx(sum(weights(model, history, "i5", "i6")), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"blocks": 1}, "blocks is 1"),
        ({"share": 0.0}, "share is 0.0"),
        ({"evaluations": 50}, "least 78"),
    ],
)
def test_options_that_cannot_do_are_refused(options, named):
    with pytest.raises(ExplanationError, match=named):
        coarse_to_fine(game_task([needles(100, (1, 2))[1]], [100]), **options)
