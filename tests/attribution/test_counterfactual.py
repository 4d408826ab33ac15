"""Minimal counterfactual histories against every removal tried by hand."""

from itertools import combinations

import numpy as np
import pytest

from llm_influence.attribution.counterfactual import _Search, counterfactual
from llm_influence.errors import ExplanationError
from llm_influence.types import Event, History
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
    search = _Search(model, history, 1)
    search.ask([range(len(history))])  # nothing is left: something else is recommended
    assert len(search.best()) == len(history)
    search.put_back()
    best, item = search.best(), model.catalogue.ids[search.item].as_py()
    assert len(best) < len(history) - 2
    assert item not in first(model, history, best)
    assert all(item in first(model, history, best - {event}) for event in best)


def test_a_real_model_is_flipped_too(any_model, log):
    history = log.history("u7")  # longer than the context
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
            "no 2 items",
        ),
    ],
)
def test_questions_without_an_answer_are_refused(bert, history, k, named):
    with pytest.raises(ExplanationError, match=named):
        counterfactual(bert, history, k)
