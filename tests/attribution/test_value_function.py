"""The engine under every perturbation method."""

import numpy as np
import pytest
import torch

from llm_influence.attribution.targets import bind
from llm_influence.attribution.value_function import REMOVALS, ValueFunction
from llm_influence.modeling.model import log_odds
from llm_influence.rendering.batch import collate


@pytest.fixture(params=REMOVALS)
def removal(request):
    return request.param


@pytest.fixture
def histories(model, log):
    return [model.encoder.trim(log.at(row)) for row in (0, 9, 3)]


def some_masks(histories, count=6):
    rng = np.random.default_rng(0)
    return [rng.random((count, len(history))) < 0.6 for history in histories]


def test_each_distinct_mask_is_computed_once(bert, log, removal, monkeypatch):
    computed = []
    forward = bert.forward
    monkeypatch.setattr(
        bert, "forward", lambda batch: computed.append(len(batch.input_ids)) or forward(batch)
    )
    histories = [log.at(0), log.at(1)]
    values = ValueFunction(bert, histories, bind("i7", bert, histories), removal)
    a, b = np.array([1, 0, 1, 1], dtype=bool), np.array([0, 0, 1, 1], dtype=bool)
    c = np.ones(5, dtype=bool)
    first = values([np.stack([a, b, a, b, a]), np.stack([c])])
    assert values.passes.tolist() == [2, 1]
    assert sum(computed) == 3
    assert first[0][0] == first[0][2] == first[0][4] != first[0][1] == first[0][3]
    second = values([np.stack([b, a]), np.empty((0, 5), dtype=bool)])
    assert second[0].tolist() == [first[0][1], first[0][0]]
    assert second[1].shape == (0,)
    assert values.passes.tolist() == [2, 1]
    values.ends()
    assert values.passes.tolist() == [4, 2]  # all events of the second user were known
    assert sum(computed) == 6


@pytest.mark.parametrize("budget", [1, 60])
def test_the_token_budget_changes_nothing(model, histories, removal, budget):
    target, masks = bind("top1", model, histories), some_masks(histories)
    whole = ValueFunction(model, histories, target, removal)(masks)
    parts = ValueFunction(model, histories, target, removal, token_budget=budget)(masks)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_token_budget_bounds_every_batch(bert, log, removal, monkeypatch):
    sizes = []
    forward = bert.forward
    monkeypatch.setattr(
        bert, "forward", lambda batch: sizes.append(batch.input_ids.shape) or forward(batch)
    )
    histories = [bert.encoder.trim(log.at(row)) for row in (0, 9, 3)]
    values = ValueFunction(bert, histories, bind("i7", bert, histories), removal, token_budget=100)
    values(some_masks(histories))
    assert len(sizes) > 1
    assert all(rows * width <= 100 for rows, width in sizes)


def test_the_ends_are_the_frame_alone_and_the_whole_history(model, histories, removal):
    target = bind("top1", model, histories)
    base, full = ValueFunction(model, histories, target, removal).ends()
    for row, history in enumerate(histories):
        for found, kept in ((base, history.keep(slice(0))), (full, history)):
            with torch.no_grad():
                logits = model(collate(model.encoder.encode([kept]))).item_logits
            expected = log_odds(logits, target.codes[row : row + 1])
            assert found[row] == pytest.approx(float(expected), abs=1e-4)


def test_removals_differ_but_for_the_whole_and_the_frame(model, histories):
    target, masks = bind("i7", model, histories), some_masks(histories)
    drop, mask = (ValueFunction(model, histories, target, removal) for removal in REMOVALS)
    np.testing.assert_allclose(drop.ends(), mask.ends(), atol=1e-4)
    assert not np.allclose(np.concatenate(drop(masks)), np.concatenate(mask(masks)), atol=1e-3)
