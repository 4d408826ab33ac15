"""Minimal counterfactual histories and attacks, against removals tried by hand."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from llm_influence.attribution.attacks import attack
from llm_influence.attribution.counterfactual import Removals, counterfactual
from llm_influence.errors import ExplanationError
from llm_influence.types import Event, History
from tests import tiny
from tests.attribution.stand_ins import bag_model, typed

ITEMS = ("i3", "i9", "i4", "i12", "i20", "i11", "i8")


def first(model, history, removed, k=1):
    """The first k ids without those events, items of the whole history excluded."""
    seen, read = set(history.item_ids()), model.encoder.trim(history)
    kept = np.ones(len(read), dtype=bool)
    kept[list(removed)] = False
    ranked = model.recommend(read.keep(kept), len(model.catalogue), exclude_seen=False)
    return [found.item for found in ranked if found.item not in seen][:k]


def smallest(model, history, k=1):
    """The size of the smallest removal that works, by trying all."""
    before, events = first(model, history, ())[0], len(model.encoder.trim(history))
    for size in range(1, events + 1):
        for removed in combinations(range(events), size):
            if before not in first(model, history, removed, k):
                return size
    return None


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [(0, 3), (4, 7), (1, 6)])
def test_the_removal_is_verified_and_as_small_as_can_be(k, rows):
    model = bag_model()
    history = typed(*ITEMS[rows[0] : rows[1]], "i15", "i16")
    found = counterfactual(model, history, k)
    assert found.minimal
    expected = smallest(model, history, k)
    if expected is None:
        assert (found.removed, found.flipped_to) == ((), None)
        assert found.proven == len(history)
    else:
        assert len(found.removed) == expected == found.proven
        assert found.item == first(model, history, ())[0]
        assert found.item not in first(model, history, found.removed, k)
        assert found.flipped_to == first(model, history, found.removed)[0]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_screening_finds_a_removal_from_which_no_event_can_be_put_back(start):
    model = bag_model()
    history = typed(*ITEMS[start:], *(f"i{n}" for n in range(14, 19)))
    found = counterfactual(model, history, exhaustive=0)
    assert found.proven == 0
    expected = smallest(model, history)
    assert (found.flipped_to is None) == (expected is None)
    if expected is not None:
        assert found.item not in first(model, history, found.removed)
        assert found.minimal == (len(found.removed) == 1)
        assert expected <= len(found.removed) <= expected + 1
        for event in found.removed:
            rest = set(found.removed) - {event}
            assert found.item in first(model, history, rest)


def test_whatever_can_be_put_back_is_put_back():
    model = bag_model()
    history = typed(*ITEMS, "i15")
    search = Removals(model, history, 1)
    search.try_all([range(len(history))])  # nothing is left: something else is recommended
    assert len(search.best()) == len(history)
    search.put_back()
    best, item = search.best(), model.catalogue.ids[search.item].as_py()
    assert len(best) < len(history) - 2
    assert item not in first(model, history, best)
    assert all(item in first(model, history, best - {event}) for event in best)


def test_a_real_model_is_flipped_too(any_model, log):
    history = log["u7"]  # longer than the context
    found = counterfactual(any_model, history)
    assert found.item == first(any_model, history, ())[0]
    assert first(any_model, history, found.removed)[0] == (found.flipped_to or found.item)
    assert len(found.removed) == (smallest(any_model, history) or 0)
    assert not any_model.training


@pytest.mark.parametrize(
    ("history", "k", "named"),
    [
        (typed(), 1, "no event"),
        (typed("i3"), 0, "k is 0"),
        (
            History.from_events("u", [Event(f"i{i}", "click", i) for i in range(29)]),
            1,
            "fewer than 2 items",
        ),
    ],
)
def test_questions_without_an_answer_are_refused(bert, history, k, named):
    with pytest.raises(ExplanationError, match=named):
        counterfactual(bert, history, k)


# --- attacks ---


@pytest.fixture(scope="module")
def attacked():
    return tiny.tiny_model(noise=0.3)


def lead(model, history, item, seen):
    """Lead of the item over the best other that is not seen, by the model's own list."""
    allowed = [each for each in model.catalogue.ids.to_pylist() if each not in seen]
    found = {r.item: r.log_odds for r in model.recommend(history, 99, candidates=allowed)}
    return found[item] > max(odds for name, odds in found.items() if name != item)


def test_removed_events_take_the_recommendation_away_and_not_before(attacked, log):
    flipped = 0
    for user in range(len(log)):
        history, found = log.at(user), attack(attacked, log.at(user), "removal", budget=3)
        read, seen = attacked.encoder.trim(history), set(history.item_ids())
        assert found.item == attacked.recommend(history, 1)[0].item
        assert len(found.leads) == len(found.changed) + 1 <= 4
        for steps in range(len(found.changed) + 1):
            kept = np.ones(len(read), dtype=bool)
            kept[list(found.changed[:steps])] = False
            assert lead(attacked, read.keep(kept), found.item, seen) == (found.leads[steps] >= 0)
        if found.needed:
            flipped += 1
            assert found.needed >= len(counterfactual(attacked, history).removed)
    assert flipped


def test_the_first_removal_is_the_worst_of_all(attacked, log):
    history = log.at(7)
    found = attack(attacked, history, "removal", budget=1, tried=1)
    read, places = attacked.encoder.trim(history), range(len(attacked.encoder.trim(history)))
    seen = set(history.item_ids())
    alone = [
        not lead(attacked, read.keep(np.arange(len(read)) != place), found.item, seen)
        for (place,) in combinations(places, 1)
    ]
    assert any(alone) == (found.needed == 1)


def test_injected_items_take_the_recommendation_away(attacked, log):
    flipped = 0
    for user in range(len(log)):
        history = log.at(user)
        found = attack(attacked, history, "injection", budget=2, tried=8)
        events = history.events()
        for item in found.changed:
            last = events[-1]
            events.append(Event(item, last.behavior, last.timestamp + 60, last.value))
        longer = History.from_events(history.user_id, events, history.user)
        assert found.item not in found.changed
        assert not {*found.changed} & {*history.item_ids()}
        seen = {*history.item_ids(), *found.changed}
        assert lead(attacked, longer, found.item, seen) == (found.leads[-1] >= 0)
        flipped += found.needed is not None
    assert flipped


def test_an_injected_event_may_not_come_after_the_question(attacked, log):
    history = replace(log.at(3), query_time=int(log.at(3).timestamps[-1]))
    found = attack(attacked, history, "injection", budget=2, tried=4)
    assert found.changed == attack(attacked, log.at(3), "injection", budget=2, tried=4).changed


def test_items_that_the_gradient_promises_hurt_almost_as_much_as_any(log):
    smooth = tiny.tiny_model()  # nearer to its start, where a gradient reaches further
    leads = {
        tried: np.array(
            [
                attack(smooth, log.at(user), "injection", budget=1, tried=tried).leads
                for user in range(len(log))
            ]
        )
        for tried in (3, 999)
    }
    fell = {tried: np.mean(each[:, 0] - each[:, 1]) for tried, each in leads.items()}
    assert fell[3] > 0.6 * fell[999] > 0


def test_what_cannot_be_attacked_is_refused(attacked, log):
    with pytest.raises(ExplanationError, match="events in the history: 1"):
        attack(attacked, log.at(0).keep(slice(0, 1)), "removal")
    with pytest.raises(ExplanationError, match="budget is 0"):
        attack(attacked, log.at(0), "removal", budget=0)
    with pytest.raises(ExplanationError, match="reads words"):
        attack(tiny.tiny_model(style="text"), log.at(0), "injection")
