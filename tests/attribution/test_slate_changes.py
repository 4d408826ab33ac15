"""What leaves and enters the list is what the model recommends without the event."""

import numpy as np
import pytest

from llm_influence import Explainer, InfluenceModel, Slate, slate_changes
from llm_influence.errors import ExplanationError
from llm_influence.influence.slate_change import largest
from llm_influence.types import History
from tests.attribution.stand_ins import typed


def named(model, found):
    return [r.title or r.item for r in found]


def by_hand(model, history, place, k):
    """The old and the new list, from recommendations without the event."""
    held = set(history.item_ids())
    shorter = history.keep(np.arange(len(history)) != place)
    new = [r for r in model.recommend(shorter, 40, exclude_seen=False) if r.item not in held][:k]
    return named(model, model.recommend(history, k)), named(model, new)


def test_each_removal_is_evaluated(bert, log):
    history = bert.encoder.trim(log.at(9))
    changes = slate_changes(bert, history, 5)
    assert [change.event for change in changes] == list(range(len(history)))
    for change in changes:
        old, new = by_hand(bert, history, change.event, 5)
        assert change.leaves == tuple(name for name in old if name not in new)
        assert change.enters == tuple(name for name in new if name not in old)
        assert (change.size, change.stays) == (5, len(set(old) & set(new)))
        staying = [name for name in old if name in new]
        assert change.moved == sum(old.index(name) != new.index(name) for name in staying)
    assert any(change.leaves for change in changes)


@pytest.mark.parametrize("method", ["leave_one_out", "group_shapley"])
def test_the_explanation_of_a_slate_holds_the_largest_change(bert, log, method):
    histories = [log.at(row) for row in (0, 9)]
    records = Explainer(bert, method).explain_many(histories, ["top1", Slate(5)])
    for history, (item, slate) in zip(histories, records, strict=True):
        assert item.slate_change is None
        assert slate.slate_change == largest(slate_changes(bert, history, 5))
        assert "The list “top 5: " in slate.to_text() or "the list “top 5: " in slate.to_text()


def test_an_ensemble_has_the_list_of_all_its_members(bert, recurrence, log):
    both = InfluenceModel.ensemble([bert, recurrence])
    record = Explainer(both, "leave_one_out").explain(log.at(9), Slate(5))
    change = record.slate_change
    old, new = by_hand(both, both.encoder.trim(log.at(9)), change.event, 5)
    assert change.leaves == tuple(name for name in old if name not in new)


def test_an_only_event_and_none(bert):
    (change,) = slate_changes(bert, typed("i3"), 4)
    assert change.size == 4
    with pytest.raises(ExplanationError, match="no event"):
        slate_changes(bert, History.from_events("u", []), 4)
