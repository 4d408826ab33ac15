"""The split of new items: training without them, and their examples."""

import numpy as np
import pytest

from llm_influence.data.holdouts import split_new_items
from llm_influence.errors import EmptyLogError
from tests import tiny


@pytest.fixture(scope="module")
def whole():
    return tiny.small_log(users=60)


@pytest.fixture(scope="module")
def task(whole):
    return split_new_items(
        whole, validation_items=0.2, test_items=0.3, later_part=0.4, min_history=3
    )


def ids(log, codes):
    return set(log.catalogue.ids.take(tiny.pa.array(codes)).to_pylist())


def test_training_has_no_new_item(whole, task):
    new = set(task.new_items.ids.to_pylist())
    old = set(task.old.train.catalogue.ids.to_pylist())
    assert len(new) == 15
    assert new | old == set(whole.catalogue.ids.to_pylist())
    assert not new & old
    for history in task.old.log:
        first = whole[history.user_id]
        kept = [event for event in first.events() if event.item not in new]
        assert history.events() == kept
        assert dict(history.user) == dict(first.user)


def test_training_events_lie_before_all_targets(whole, task):
    trained = {h.user_id: h.events() for h in task.old.train}
    for rows in (task.validation, task.test, task.old.validation, task.old.test):
        assert len(rows)
        for n in range(len(rows)):
            user = rows.history(n).user_id
            target = rows.log.at(int(rows.users[n])).events()[rows.positions[n]]
            assert target not in trained.get(user, [])
            assert len(trained.get(user, [])) <= 0.6 * len(whole[user])


def test_examples_are_all_later_events_of_the_new_items(whole, task):
    targets = [ids(task.log, rows.target_items) for rows in (task.validation, task.test)]
    assert not targets[0] & targets[1]
    assert targets[0] | targets[1] <= set(task.new_items.ids.to_pylist())
    expected = 0
    for history in whole:
        events, trained = history.item_ids(), int(0.6 * len(history))
        later = events[max(trained, 3) :]
        expected += sum(item in set(task.new_items.ids.to_pylist()) for item in later)
    assert len(task.validation) + len(task.test) == expected
    assert min(task.validation.positions.min(), task.test.positions.min()) >= 3


def test_histories_of_examples_are_whole_and_coded_as_a_model_with_the_items_added(whole, task):
    catalogue = task.old.train.catalogue.extend(task.new_items)
    assert task.log.catalogue.ids.equals(catalogue.ids)
    assert catalogue.titles == task.log.catalogue.titles
    for n in range(len(task.test)):
        history = task.test.history(n)
        before = whole[history.user_id].item_ids()[: len(history)]
        assert history.item_ids() == before
        assert catalogue.ids.take(tiny.pa.array(history.items)).to_pylist() == before
    assert task.test.target_items.min() >= len(task.old.train.catalogue)


def test_another_seed_draws_other_items(whole, task):
    options = {"validation_items": 0.2, "test_items": 0.3, "later_part": 0.4, "min_history": 3}
    same, other = (split_new_items(whole, seed=seed, **options) for seed in (0, 1))
    assert same.new_items.ids.equals(task.new_items.ids)
    assert (same.test.positions == task.test.positions).all()
    assert not np.array_equal(
        sorted(other.new_items.ids.to_pylist()), sorted(task.new_items.ids.to_pylist())
    )


def test_a_log_without_examples_is_refused(whole):
    with pytest.raises(EmptyLogError, match="0 examples validate, 0 test"):
        split_new_items(whole, min_history=100)
