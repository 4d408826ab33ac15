"""Linear transitions: the closed form, and the choice of a setting."""

import numpy as np

from llm_influence.data.log import BehaviorLog
from llm_influence.modeling import transitions
from llm_influence.modeling.transitions import LinearSetting, linear_transitions
from tests import tiny


def dense(histories, items, setting):
    """The same regression from whole matrices of events by items."""
    before, after = [], []
    for history in histories:
        for place in range(len(history) - 1):
            rows = np.zeros((2, items))
            for k in range(place + 1):
                rows[0, history[place - k]] += np.exp(-k / setting.source_decay)
            for k in range(1, len(history) - place):
                rows[1, history[place + k]] += np.exp(-(k - 1) / setting.target_decay)
            before.append(rows[0])
            after.append(rows[1])
    source, target = np.array(before), np.array(after)
    return np.linalg.solve(source.T @ source + setting.ridge * np.eye(items), source.T @ target)


def test_the_matrix_is_the_ridge_regression_of_all_events():
    random, setting = np.random.default_rng(0), LinearSetting(3.0, 1.5, 0.7)
    histories = [random.integers(9, size=size) for size in (1, 2, 5, 12)]
    found = linear_transitions(histories, 9, setting)
    np.testing.assert_allclose(found, dense(histories, 9, setting), atol=1e-4)


def test_a_decayed_history_weighs_the_last_event_one():
    rows = transitions.decayed_histories([np.array([4, 1, 4]), np.array([], np.int64)], 6, 2.0)
    expected = np.zeros((2, 6))
    expected[0, 1], expected[0, 4] = np.exp(-0.5), 1 + np.exp(-1.0)
    np.testing.assert_allclose(rows.toarray(), expected, rtol=1e-6)


def test_associations_find_what_follows_and_have_a_spread_of_one():
    """Item 2k is followed by item 2k + 1 in every history."""
    random = np.random.default_rng(1)
    log = BehaviorLog.from_arrays(
        user_ids=[f"u{n}" for n in range(60)],
        offsets=np.arange(61) * 6,
        items=np.concatenate(
            [np.ravel([(2 * k, 2 * k + 1) for k in random.permutation(5)[:3]]) for _ in range(60)]
        ),
        timestamps=np.tile(np.arange(6), 60),
        catalogue=tiny.small_log().catalogue,
    )
    matrix, decay = transitions.fit_associations(log, neighbors=200, seed=0)
    rows = matrix.toarray()[:10:2, :10]
    assert (rows.argmax(axis=1) == np.arange(1, 10, 2)).all()
    assert decay in transitions.READ_DECAYS


def test_the_choice_depends_on_the_seed_alone():
    log = tiny.small_log()
    (one, first), (two, second) = (
        transitions.fit_associations(log, neighbors=5, seed=3) for _ in range(2)
    )
    assert first == second
    assert (one != two).nnz == 0
    assert one.shape == (len(log.catalogue),) * 2
    assert np.diff(one.indptr).max() == 5
