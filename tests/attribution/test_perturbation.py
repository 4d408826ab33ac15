"""leave_one_out against sums that are known and against histories shortened by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Contrast, Item
from llm_influence.rendering.batch import collate
from llm_influence.types import History
from tests.attribution.stand_ins import bag_model, typed

TARGET = Item("i7")


def value(model, batch):
    """Log-odds of i7, from the probability."""
    with torch.no_grad():
        p = model(batch).item_logits[0].double().softmax(-1)[model.catalogue.index(["i7"])[0]]
    return float(torch.log(p / (1 - p)))


def batch_of(model, history, events):
    shortened = History.from_events(history.user_id, events, history.user)
    return collate(model.encoder.encode([shortened]))


@pytest.mark.parametrize("removal", ["drop", "mask"])
def test_an_additive_model_is_explained_whole_in_two_passes_more_than_events(removal):
    history = typed("i3", "i9", "i4", "i12")
    explainer = Explainer(bag_model(), "leave_one_out", removal=removal)
    influence = explainer.explain(history, Contrast("i5", "i6"))
    assert influence.quality.completeness_gap < 1e-4
    assert influence.quality.evaluations == len(history) + 2


def test_drop_equals_telling_the_history_without_the_event(model, log):
    history = model.encoder.trim(log.at(7))
    events = history.events()
    full = value(model, batch_of(model, history, events))
    rest = [[*events[:i], *events[i + 1 :]] for i in range(len(events))]
    expected = [full - value(model, batch_of(model, history, kept)) for kept in rest]
    influence = Explainer(model, "leave_one_out", removal="drop").explain(history, TARGET)
    np.testing.assert_allclose(influence.scores, expected, atol=1e-4)
    assert influence.full_value == pytest.approx(full, abs=1e-4)
    assert influence.base_value == pytest.approx(
        value(model, batch_of(model, history, [])), abs=1e-4
    )

    # the gap after the event is measured again: cutting its tokens out is not enough
    batch, cut = batch_of(model, history, events), []
    for i in range(len(events)):
        keep = batch.event_index[0] != i
        columns = ("input_ids", "attention_mask", "event_index", "field_index", "added_ids")
        cut.append(replace(batch, **{name: getattr(batch, name)[:, keep] for name in columns}))
    stale = np.array([full - value(model, part) for part in cut])
    assert stale[-1] == pytest.approx(expected[-1], abs=1e-4)  # nothing comes after the last
    assert np.abs(stale[:-1] - expected[:-1]).max() > 1e-3


def test_mask_equals_hiding_the_tokens_of_the_event(model, log):
    history = model.encoder.trim(log.at(7))
    batch = batch_of(model, history, history.events())
    full = value(model, batch)
    expected = [
        full - value(model, replace(batch, attention_mask=batch.event_index != i))
        for i in range(len(history))
    ]
    influence = Explainer(model, "leave_one_out", removal="mask").explain(history, TARGET)
    np.testing.assert_allclose(influence.scores, expected, atol=1e-4)
    dropped = Explainer(model, "leave_one_out").explain(history, TARGET)
    assert dropped.quality.removal == "drop"
    assert not np.allclose(influence.scores, dropped.scores, atol=1e-3)
