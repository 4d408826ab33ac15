"""Values of coalitions: what they mean, and that nothing but the coalition decides them."""

import numpy as np
import pytest
import torch

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import REMOVALS, Players
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.modeling.scoring import log_odds
from llm_influence.rendering.encoder import collate


@pytest.fixture(params=REMOVALS)
def removal(request):
    return request.param


@pytest.fixture
def histories(model, log):
    return [model.encoder.trim(log.at(row)) for row in (0, 9, 3)]


def some_masks(sizes, count=6):
    rng = np.random.default_rng(0)
    return [rng.random((count, size)) < 0.6 for size in sizes]


def lengths(histories):
    return [len(history) for history in histories]


def test_each_distinct_mask_is_read_once(bert, log, removal):
    histories = [log.at(0), log.at(1)]
    values = ValueFunction(bert, histories, bind("i7", bert, histories), removal)
    a, b = np.array([1, 0, 1, 1], dtype=bool), np.array([0, 0, 1, 1], dtype=bool)
    c = np.ones(5, dtype=bool)
    first = values([np.stack([a, b, a, b, a]), np.stack([c])])
    assert values.evaluations.tolist() == [2, 1]
    assert first[0][0] == first[0][2] == first[0][4] != first[0][1] == first[0][3]
    second = values([np.stack([b, a]), np.empty((0, 5), dtype=bool)])
    assert second[0].tolist() == [first[0][1], first[0][0]]
    assert second[1].shape == (0,)
    assert values.evaluations.tolist() == [2, 1]
    values.ends()
    assert values.evaluations.tolist() == [4, 2]  # all events of the second user were known


def test_targets_that_share_an_engine_share_its_evaluations(model, histories, removal):
    engine, masks = Engine(model), some_masks(lengths(histories))
    first = ValueFunction(model, histories, bind("top1", model, histories), removal, engine=engine)
    first(masks)
    read = engine.tokens
    target = bind("cart", model, histories)
    shared = ValueFunction(model, histories, target, removal, engine=engine)
    found = shared(masks)
    assert engine.tokens == read
    assert first.evaluations.tolist() == shared.evaluations.tolist()  # as if each had been alone
    for ours, alone in zip(
        found, ValueFunction(model, histories, target, removal)(masks), strict=True
    ):
        np.testing.assert_allclose(ours, alone, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 60])
def test_the_token_budget_changes_nothing(model, histories, removal, budget):
    target, masks = bind("top1", model, histories), some_masks(lengths(histories))
    whole = ValueFunction(model, histories, target, removal)(masks)
    small = Engine(model, token_budget=budget)
    parts = ValueFunction(model, histories, target, removal, engine=small)(masks)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_ends_are_the_whole_history_and_what_the_removal_leaves(model, histories, removal):
    target = bind("top1", model, histories)
    base, full = ValueFunction(model, histories, target, removal).ends()
    for row, history in enumerate(histories):
        for found, kept in ((base, history.keep(slice(0))), (full, history)):
            if found is base and removal == "replace":
                continue  # neutral events stand there: test_gradient compares them
            with torch.no_grad():
                logits = model(collate(model.encoder.encode([kept]))).item_logits
            expected = log_odds(logits, target.codes[row : row + 1])
            assert found[row] == pytest.approx(float(expected), abs=1e-4)


def test_removals_differ_but_for_the_whole(model, histories):
    target, masks = bind("i7", model, histories), some_masks(lengths(histories))
    functions = [ValueFunction(model, histories, target, removal) for removal in REMOVALS]
    fulls = [function.ends()[1] for function in functions]
    np.testing.assert_allclose(fulls[0], fulls[1], atol=1e-4)
    np.testing.assert_allclose(fulls[0], fulls[2], atol=1e-4)
    drop, mask, replace = (np.concatenate(function(masks)) for function in functions)
    assert not np.allclose(drop, mask, atol=1e-3)
    assert not np.allclose(mask, replace, atol=1e-3)


def test_without_all_of_its_fields_an_event_is_a_neutral_event(model, histories):
    target = bind("top1", model, histories)
    events = ValueFunction(model, histories, target, "replace")
    fields = ValueFunction(model, histories, target, "replace", players=Players("fields"))
    each = [n // e for n, e in zip(fields.sizes, events.sizes, strict=True)]
    assert min(each) > 1
    masks = some_masks(events.sizes)
    wide = [np.repeat(mask, width, axis=1) for mask, width in zip(masks, each, strict=True)]
    for ours, theirs in zip(fields(wide), events(masks), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(fields.ends(), events.ends(), atol=1e-4)
    alone = [~np.eye(size, dtype=bool) for size in fields.sizes]
    assert all(len(set(np.round(values, 6))) > 2 for values in fields(alone))


def test_parts_of_events_can_only_be_replaced(bert, log):
    histories = [log.at(0)]
    target = bind("i7", bert, histories)
    for players in (Players("fields"), Players("events", user=True)):
        for removal in ("drop", "mask"):
            with pytest.raises(ExplanationError, match="replace"):
                ValueFunction(bert, histories, target, removal, players=players)
