"""What keeps a recommendation: against all sets, and verified by the model."""

from itertools import combinations

import pytest

from llm_influence.attribution.recommended import best_unseen
from llm_influence.attribution.sufficient import sufficient_events
from llm_influence.errors import ExplanationError
from llm_influence.types import History
from tests.attribution.stand_ins import FAST, model_of


@pytest.fixture(scope="module")
def model():
    return model_of(*FAST[0])


def keeps(model, history, kept):
    """Whether the item that is first after all events is first after some of them."""
    whole, events = model.encoder.trim(history), model.encoder.trim(history).events()
    shorter = History.from_events(history.user_id, [events[place] for place in kept], history.user)
    seen = set(model.encoder.vocabulary.item_codes(history).tolist())
    first = int(best_unseen(model, [history], 1)[0][0, 0])
    logits = next(model.predict([shorter]))[1].item_logits[0].clone()
    logits[list(seen)] = -float("inf")
    assert len(whole) >= len(kept)
    return int(logits.argmax()) == first


@pytest.mark.parametrize("user", range(8))
def test_no_smaller_set_keeps_it(model, log, user):
    history = log.at(user)
    found = sufficient_events(model, history)
    assert found.minimal
    assert keeps(model, history, found.kept)
    players = range(len(model.encoder.trim(history)))
    for size in range(len(found.kept)):
        assert not any(keeps(model, history, kept) for kept in combinations(players, size))


def test_a_set_that_is_found_by_influence_keeps_it_and_needs_each_event(model, log):
    for user in (7, 9, 10, 11):
        found = sufficient_events(model, log.at(user), exhaustive=1)
        assert keeps(model, log.at(user), found.kept)
        for out in found.kept if len(found.kept) > 1 else ():
            assert not keeps(model, log.at(user), [e for e in found.kept if e != out])


def test_a_history_without_events_is_refused(model):
    with pytest.raises(ExplanationError, match="no event"):
        sufficient_events(model, History.from_events("nobody", []))
