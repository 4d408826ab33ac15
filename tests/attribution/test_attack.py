"""Attacks: every step is what the model says, and no budget is exceeded."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from llm_influence.attribution.attack import attack
from llm_influence.attribution.counterfactual import counterfactual
from llm_influence.errors import ExplanationError
from llm_influence.types import Event, History
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model(noise=0.3)


@pytest.fixture(scope="module")
def log():
    return tiny.small_log()


def lead(model, history, item, seen):
    """Lead of the item over the best other that is not seen, by the model's own list."""
    allowed = [each for each in model.catalogue.ids.to_pylist() if each not in seen]
    found = {r.item: r.log_odds for r in model.recommend(history, 99, candidates=allowed)}
    return found[item] > max(odds for name, odds in found.items() if name != item)


def test_removed_events_take_the_recommendation_away_and_not_before(model, log):
    flipped = 0
    for user in range(len(log)):
        history, found = log.at(user), attack(model, log.at(user), "removal", budget=3)
        read, seen = model.encoder.trim(history), set(history.item_ids())
        assert found.item == model.recommend(history, 1)[0].item
        assert len(found.leads) == len(found.changed) + 1 <= 4
        for steps in range(len(found.changed) + 1):
            kept = np.ones(len(read), dtype=bool)
            kept[list(found.changed[:steps])] = False
            assert lead(model, read.keep(kept), found.item, seen) == (found.leads[steps] >= 0)
        if found.needed:
            flipped += 1
            assert found.needed >= len(counterfactual(model, history).removed)
    assert flipped


def test_the_first_removal_is_the_worst_of_all(model, log):
    history = log.at(7)
    found = attack(model, history, "removal", budget=1, tried=1)
    read, places = model.encoder.trim(history), range(len(model.encoder.trim(history)))
    seen = set(history.item_ids())
    alone = [
        not lead(model, read.keep(np.arange(len(read)) != place), found.item, seen)
        for (place,) in combinations(places, 1)
    ]
    assert any(alone) == (found.needed == 1)


def test_injected_items_take_the_recommendation_away(model, log):
    flipped = 0
    for user in range(len(log)):
        history = log.at(user)
        found = attack(model, history, "injection", budget=2, tried=8)
        events = history.events()
        for item in found.changed:
            last = events[-1]
            events.append(Event(item, last.behavior, last.timestamp + 60, last.value))
        longer = History.from_events(history.user_id, events, history.user)
        assert found.item not in found.changed
        assert not {*found.changed} & {*history.item_ids()}
        seen = {*history.item_ids(), *found.changed}
        assert lead(model, longer, found.item, seen) == (found.leads[-1] >= 0)
        flipped += found.needed is not None
    assert flipped


def test_an_injected_event_may_not_come_after_the_question(model, log):
    history = replace(log.at(3), query_time=int(log.at(3).timestamps[-1]))
    found = attack(model, history, "injection", budget=2, tried=4)
    assert found.changed == attack(model, log.at(3), "injection", budget=2, tried=4).changed


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


def test_what_cannot_be_attacked_is_refused(model, log):
    with pytest.raises(ExplanationError, match="history has 1 event"):
        attack(model, log.at(0).keep(slice(0, 1)), "removal")
    with pytest.raises(ExplanationError, match="budget is 0"):
        attack(model, log.at(0), "removal", budget=0)
    with pytest.raises(ExplanationError, match="reads words"):
        attack(tiny.tiny_model(style="text"), log.at(0), "injection")
