"""The data-generating process, checked by hand and by brute force."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.datasets.generating_process import Drift, GeneratingProcess, cluster_factors
from llm_influence.errors import UnknownNameError
from llm_influence.types import Event, History

HOUR = 3600


def process(**options) -> GeneratingProcess:
    """Items a0, a1 of one cluster, b0 of another, g of none; half-life two hours."""
    return GeneratingProcess(
        item_ids=pa.array(["a0", "a1", "b0", "g"], pa.string()),
        factors=np.array([[1.0, 0], [1, 0], [0, 1], [0, 0]]),
        behaviors=("buy", "hide", "see"),
        weights=np.array([2.0, -1.0, 0.0]),
        half_life=2 * HOUR,
        **options,
    )


def history(*events: tuple[str, str, float]) -> History:
    return History.from_events("u", [Event(i, b, int(h * HOUR)) for i, b, h in events])


PAST = history(("a0", "buy", 0), ("b0", "buy", 2), ("a1", "hide", 3), ("a1", "see", 4))


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum()


def test_the_equation_worked_out_by_hand():
    # ages 4, 2, 1, 0 hours: a quarter, a half, 2^-1/2 and all of 2, 2, -1, 0
    a, b = 2 / 4 - 2**-0.5, 2 / 2
    expected = np.log(softmax(np.array([a, a, b, 0]) / 0.5))
    np.testing.assert_allclose(process(temperature=0.5).log_probabilities(PAST), expected)


def test_without_any_event_every_item_is_as_likely():
    np.testing.assert_allclose(np.exp(process().log_probabilities(PAST.keep(slice(0)))), 1 / 4)


def test_steps_count_instead_of_hours():
    # 3, 2, 1, 0 steps back with a half-life of one step
    slow = GeneratingProcess(**{**vars(process()), "clock": "steps", "half_life": 1.0})
    a, b = 2 / 8 - 1 / 2, 2 / 4
    np.testing.assert_allclose(
        slow.log_probabilities(PAST), np.log(softmax(np.array([a, a, b, 0])))
    )


def test_a_process_that_drifts_goes_by_the_date_of_the_last_event():
    drift = Drift(4 * HOUR, np.array([0.0, 1.0, 0.0]))
    before, after = process(), process(drift=drift)
    early = PAST.keep(slice(3))
    for one in (before, after):
        np.testing.assert_allclose(one.log_probabilities(early), before.log_probabilities(early))
    # of the four events the third alone counts from then on, an hour back: 2^-1/2
    wanted = np.log(softmax(np.array([2**-0.5, 2**-0.5, 0, 0])))
    np.testing.assert_allclose(after.log_probabilities(PAST), wanted)
    np.testing.assert_allclose(np.exp(after.log_probabilities(PAST.keep(slice(0)))), 1 / 4)


def test_in_a_contrast_without_pairs_an_event_gives_weight_times_decay_times_affinity():
    gives = process(temperature=0.5).influence(PAST, item=0, other=2)
    np.testing.assert_allclose(gives, np.array([2 / 4, -2 / 2, -(2**-0.5), 0]) / 0.5, atol=1e-12)


def test_log_odds_of_an_item_lose_what_the_process_without_the_event_says():
    def odds(kept):
        scores = np.zeros(4)
        for place in kept:
            items, amount = [([0, 1], 0.5), ([2], 1.0), ([0, 1], -(2**-0.5)), ([], 0)][place]
            scores[items] += amount
        chance = softmax(scores)[1]
        return np.log(chance / (1 - chance))

    everything = set(range(4))
    expected = [odds(everything) - odds(everything - {place}) for place in range(4)]
    np.testing.assert_allclose(process().influence(PAST, item=1), expected, atol=1e-12)


def test_two_events_of_a_pair_give_more_than_each_alone():
    pairs, masks = (
        process(pair_strength=0.8),
        np.array(list(itertools.product([False, True], repeat=4))),
    )
    a = np.array([2 / 4, 2 / 2, -(2**-0.5), 0])  # weight x decay
    value = {m.tobytes(): v for m, v in zip(masks, pairs.values(PAST, masks, 0, 2), strict=True)}
    alone = sum(value[row.tobytes()] for row in np.eye(4, dtype=bool))
    # the only two alike are the first and the third; both count for item 0
    together = 0.8 / 2 * a[0] * a[2] * (1 + 1)
    assert value[np.ones(4, dtype=bool).tobytes()] == pytest.approx(alone + together)
    gives = pairs.influence(PAST, 0, 2)
    assert gives[0] == pytest.approx(a[0] + together)
    assert gives[1] == pytest.approx(-a[1])


def test_the_clock_goes_on_when_the_last_event_is_taken_away():
    without = np.array([[True, True, True, False]])
    np.testing.assert_allclose(
        process().values(PAST, without, 0, 2),
        process().values(PAST, np.ones((1, 4), dtype=bool), 0, 2),
    )


def test_codes_of_any_vocabulary_are_understood_and_unknown_names_are_refused():
    shuffled = history(("b0", "hide", 0), ("a0", "buy", 1))
    assert process().influence(shuffled, 0).argmax() == 1
    with pytest.raises(UnknownNameError, match="behaviour 'sell'"):
        process().log_probabilities(history(("a0", "sell", 0)))
    with pytest.raises(UnknownNameError, match="item 'c9'"):
        process().log_probabilities(history(("a0", "buy", 0), ("c9", "buy", 1)))


def test_clusters_are_orthogonal_with_enough_dimensions_and_not_with_fewer():
    clusters, random = np.array([0, 1, 2, 0, -1]), np.random.default_rng(0)
    factors = cluster_factors(clusters, 3, 0.0, random)
    same = (clusters[:, None] == clusters) & (clusters >= 0)[:, None]
    np.testing.assert_allclose(factors @ factors.T, same)
    few = cluster_factors(clusters, 2, 0.0, random)
    affinity = few @ few.T
    assert affinity[0, 3] == pytest.approx(1)
    assert 0.01 < abs(affinity[0, 1]) < 0.999
    assert not affinity[4].any()


def test_spread_sets_the_items_of_a_cluster_apart():
    clusters = np.zeros(20, dtype=np.int64)
    apart = [
        (f @ f.T).mean()
        for f in (cluster_factors(clusters, 4, s, np.random.default_rng(0)) for s in (0, 0.3, 1))
    ]
    assert apart[0] == pytest.approx(1)
    assert apart[0] > apart[1] > apart[2]
