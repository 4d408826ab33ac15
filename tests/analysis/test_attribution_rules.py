"""Estimators read off paths alone, each against a case that can be worked out by hand."""

import math
from itertools import permutations

import numpy as np
import pytest

from llm_influence.analysis import attribution_rules as rules
from llm_influence.analysis.attribution_rules import Paths

DAY = 86_400.0


def paths_of(*rows, count=3):
    """Paths written as ("ab", [age, age], converted)."""
    channels = [ord(letter) - ord("a") for row in rows for letter in row[0]]
    lengths = [len(row[0]) for row in rows]
    return Paths(
        channels=np.array(channels, dtype=np.int64),
        ages=np.array([age for row in rows for age in row[1]], dtype=float),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        converted=np.array([row[2] for row in rows]),
        count=count,
    )


def counted(paths):
    """Paths and conversions by set of channels."""
    sets, size = rules.channel_sets(paths), 1 << paths.count
    return [
        np.bincount(sets, weights=weights, minlength=size)
        for weights in (paths.converted.astype(float), np.ones(len(paths)))
    ]


PATHS = paths_of(
    ("abca", [9 * DAY, 7 * DAY, 0, 0], True), ("", [], True), ("cb", [2 * DAY, DAY], False)
)


def test_attribution_rules_share_each_path_as_written():
    np.testing.assert_allclose(rules.last_touch(PATHS), [[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(rules.first_touch(PATHS), [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(rules.linear(PATHS), [[0.5, 0.25, 0.25], [0, 0, 0], [0, 0.5, 0.5]])


def test_time_decay_halves_with_every_half_life_and_ignores_where_ages_begin():
    weights = np.array([2 ** (-9 / 7) + 1, 0.5, 1]) / (2 ** (-9 / 7) + 2.5)
    found = rules.time_decay(PATHS, 7 * DAY)
    np.testing.assert_allclose(found[0], weights)
    np.testing.assert_allclose(
        found[2], [0, 2 ** (1 / 7) / (1 + 2 ** (1 / 7)), 1 / (1 + 2 ** (1 / 7))]
    )
    later = Paths(PATHS.channels, PATHS.ages + 1e9, PATHS.starts, PATHS.converted, 3)
    np.testing.assert_allclose(rules.time_decay(later, 7 * DAY), found)


def test_markov_steps_are_those_of_the_paths():
    steps = rules.transitions(PATHS).toarray().reshape(3, 4, 5)
    a, b, c, start, conversion, null = 0, 1, 2, 3, 3, 4
    wanted = np.zeros((3, 4, 5))
    for path, (one, other) in [
        *((0, step) for step in [(start, a), (a, b), (b, c), (c, a), (a, conversion)]),
        (1, (start, conversion)),
        *((2, step) for step in [(start, c), (c, b), (b, null)]),
    ]:
        wanted[path, one, other] += 1
    np.testing.assert_array_equal(steps, wanted)


def test_removal_effects_are_those_of_the_chain_worked_out_by_hand():
    """a->conv, a->b->conv, b->null: from a half converts at once, half goes to b; b halves."""
    paths = paths_of(("a", [0], True), ("ab", [0, 0], True), ("b", [0], False), count=2)
    counts = rules.transitions(paths).sum(axis=0).reshape(3, 4)
    whole = 2 / 3 * (1 / 2 + 1 / 2 * 1 / 2) + 1 / 3 * 1 / 2
    without_a, without_b = 1 / 3 * 1 / 2, 2 / 3 * 1 / 2
    wanted = [1 - without_a / whole, 1 - without_b / whole]
    np.testing.assert_allclose(rules.removal_effects(counts), wanted)
    many = np.stack([counts, 3 * counts, np.zeros_like(counts)])
    found = rules.removal_effects(many)
    np.testing.assert_allclose(found[:2], [wanted, wanted])
    assert np.isnan(found[2]).all()


def test_shapley_of_counts_shares_a_set_evenly_and_is_the_shapley_value_of_its_game():
    rng = np.random.default_rng(0)
    conversions = rng.integers(0, 9, size=8).astype(float)

    def worth(coalition):
        return sum(n for s, n in enumerate(conversions) if s & ~coalition == 0)

    assert rules.shapley_of_counts(np.eye(8)[0b101]) == pytest.approx([0.5, 0, 0.5])
    np.testing.assert_allclose(rules.shapley_of_counts(conversions), by_orders(worth, 3))


def test_shapley_of_rates_is_the_shapley_value_of_its_game():
    rng = np.random.default_rng(1)
    paths = rng.integers(1, 9, size=8).astype(float)
    paths[2] = paths[0] = 0  # nobody stayed in {b}, nor was without a touch
    conversions = np.floor(paths * rng.random(8))

    def worth(coalition):
        inside = [s for s in range(8) if s & ~coalition == 0]
        stayed = sum(paths[s] for s in inside)
        return sum(conversions[s] for s in inside) / stayed if stayed else 0.0

    found = rules.shapley_of_rates(conversions, paths)
    np.testing.assert_allclose(found, by_orders(worth, 3))
    assert found.sum() == pytest.approx(conversions.sum() / paths.sum())
    many = rules.shapley_of_rates(np.stack([conversions] * 2), np.stack([paths] * 2))
    np.testing.assert_allclose(many, [found, found])


def by_orders(worth, count):
    """Shapley values by their definition, the mean gain over all orders."""
    gains = np.zeros(count)
    for order in permutations(range(count)):
        coalition = 0
        for channel in order:
            gains[channel] += worth(coalition | 1 << channel) - worth(coalition)
            coalition |= 1 << channel
    return gains / math.factorial(count)


def test_sets_of_channels_and_their_counts():
    conversions, paths = counted(PATHS)
    assert (paths[0b111], paths[0], paths[0b110]) == (1, 1, 1)
    assert (conversions[0b111], conversions[0], conversions[0b110]) == (1, 1, 0)
