"""Which items a step draws."""

import numpy as np

from llm_influence.training.augmentation import Negatives, half_popular


def test_a_draw_follows_from_the_seed_and_the_step_alone():
    one, same, other = (Negatives(np.ones(500), 60, seed=seed) for seed in (3, 3, 4))
    assert one.draw(7).tolist() == same.draw(7).tolist()
    assert one.draw(7).tolist() != one.draw(8).tolist()
    assert one.draw(7).tolist() != other.draw(7).tolist()


def test_items_are_drawn_as_often_as_their_inclusion_says_and_once_at_most():
    proposal = half_popular(np.repeat([2, 5], [30, 10]), 8)
    assert np.isclose(proposal.sum(), 1)
    negatives = Negatives(proposal, 2)
    draws = [negatives.draw(step).tolist() for step in range(4000)]
    assert all(len(draw) == len(set(draw)) for draw in draws)
    often = np.bincount(np.concatenate(draws).astype(int), minlength=8) / 4000
    expected = 2 * np.array([1, 1, 7, 1, 1, 3, 1, 1]) / 16
    np.testing.assert_allclose(often, expected, atol=0.03)
    np.testing.assert_allclose(negatives.inclusion, expected, rtol=1e-6)


def test_no_item_is_more_than_certain_and_enough_negatives_are_the_catalogue():
    assert Negatives(np.array([9.0, 1.0, 1.0]), 2).inclusion[0] == 1
    assert Negatives(np.ones(6), 6).draw(0).tolist() == list(range(6))
