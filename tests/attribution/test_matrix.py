"""Every event on every later prediction, against leave-one-out on every prefix."""

from dataclasses import replace

import numpy as np
import pytest

from llm_influence.attribution import engine as budget
from llm_influence.attribution import interactions as matrix_module
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.interactions import influence_matrix
from llm_influence.attribution.target import Behavior, Contrast, Item, Slate
from llm_influence.errors import ExplanationError
from llm_influence.types import Event, History
from tests import tiny


def prefix_by_prefix(model, history, targets, removal):
    """(E, E) leave-one-out of each prefix, and the values with all of its events."""
    explainer = Explainer(model, "leave_one_out", removal=removal, fidelity_masks=0)
    scores, values = np.full((len(history), len(history)), np.nan), []
    moments = [*history.timestamps[1:].tolist(), history.query_time]
    for last, target in enumerate(targets):
        prefix = replace(history.keep(slice(0, last + 1)), query_time=moments[last])
        found = explainer.explain(prefix, target)
        scores[: last + 1, last] = found.values
        values.append(found.full_value)
    return scores, values


@pytest.mark.parametrize("removal", ["drop", "mask"])
def test_it_equals_leave_one_out_on_every_prefix(any_model, log, removal):
    history = any_model.encoder.trim(log.at(7))
    best = any_model.recommend(log.at(7), 1)[0].item  # items left out of context are seen too
    targets = [Item(item) for item in [*history.item_ids()[1:], best]]
    found = influence_matrix(any_model, log.at(7), removal=removal)
    scores, values = prefix_by_prefix(any_model, history, targets, removal)
    np.testing.assert_allclose(found.values, scores, atol=1e-4)
    np.testing.assert_allclose(found.full_values, values, atol=1e-4)
    assert list(found.target_ids) == [target.id for target in targets]
    assert [event.item for event in found.events] == history.item_ids()
    assert np.abs(scores[np.triu_indices(len(history))]).max() > 1e-3
    assert not any_model.training


@pytest.mark.parametrize("target", [Behavior("cart"), Contrast("i5", "i6"), "top1", Slate(3)])
def test_other_targets_are_explained_after_every_event(bert, log, target):
    history = bert.encoder.trim(log.at(5))
    found = influence_matrix(bert, history, target)
    scores, values = prefix_by_prefix(bert, history, [target] * len(history), "drop")
    np.testing.assert_allclose(found.values, scores, atol=1e-4)
    np.testing.assert_allclose(found.full_values, values, atol=1e-4)


@pytest.mark.parametrize("removal", ["drop", "mask"])
@pytest.mark.parametrize("moment", [None, 10**6])
def test_a_model_that_reads_when_is_asked_at_the_moment_of_the_next_event(log, removal, moment):
    model, history = tiny.tiny_model(when=True), log.at(5)
    late = None if moment is None else int(history.timestamps[-1]) + moment
    history = replace(history, query_time=late)
    found = influence_matrix(model, history, "cart", removal=removal)
    scores, values = prefix_by_prefix(model, history, ["cart"] * len(history), removal)
    np.testing.assert_allclose(found.values, scores, atol=1e-4)
    np.testing.assert_allclose(found.full_values, values, atol=1e-4)


def test_it_takes_one_pass_an_event_however_they_are_batched(bert, log, monkeypatch):
    history, read = bert.encoder.trim(log.at(9)), []
    attend = bert.attend

    def counted(batch, *rest, **options):
        read.append(batch.input_ids.shape)
        return attend(batch, *rest, **options)

    monkeypatch.setattr(bert, "attend", counted)
    whole = influence_matrix(bert, history, "i7")
    assert sum(rows for rows, _ in read) == whole.evaluations == len(history)
    monkeypatch.setattr(budget, "ON_CPU", 1)
    monkeypatch.setattr(matrix_module, "STATES", 3)
    parts = influence_matrix(bert, history, "i7")
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-4)


def test_one_event_is_a_matrix_of_one_and_none_is_refused(bert, log):
    single = log.at(0).keep(slice(0, 1))
    expected = Explainer(bert).explain(single).values
    np.testing.assert_allclose(influence_matrix(bert, single).values, [expected], atol=1e-4)
    with pytest.raises(ExplanationError, match="0 events"):
        influence_matrix(bert, History.from_events("nobody", []))
    with pytest.raises(ExplanationError, match=r"'dorp'.*mean 'drop'"):
        influence_matrix(bert, single, removal="dorp")
    every = History.from_events("u", [Event(f"i{i}", "click", i) for i in range(30)])
    with pytest.raises(ExplanationError, match="every item"):
        influence_matrix(bert, every)
