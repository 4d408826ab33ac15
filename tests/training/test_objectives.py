"""The loss against one written out by hand."""

import pytest
import torch

from llm_influence.data.splits import split_log
from llm_influence.rendering.batch import collate
from llm_influence.training.objectives import NextEventObjective
from llm_influence.training.windows import IGNORE, WindowCollator, WindowDataset
from tests import tiny


@pytest.fixture(scope="module")
def train():
    return split_log(tiny.small_log()).train


def windows_and_inputs(train, model, count):
    windows = list(WindowDataset(train, model.encoder))[:count]
    return windows, WindowCollator(train, model.encoder)(windows)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_after_every_prefix_of_a_window(model, train, smoothing):
    """Each prefix is read alone here, so nothing after an event can have helped to predict it."""
    windows, inputs = windows_and_inputs(train, model, 5)
    objective = NextEventObjective(model, label_smoothing=smoothing).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for window in windows:
            events = train.at(window.user).keep(slice(window.start, window.stop + 1))
            for place in range(len(events)):
                prefix = events.keep(slice(place))
                predicted = model(collate(model.encoder.encode([prefix])))
                items = torch.log_softmax(predicted.item_logits[0], dim=0)
                behaviors = torch.log_softmax(predicted.behavior_logits[0], dim=0)
                item = items[int(events.items[place])]
                total -= (1 - smoothing) * item + smoothing * items.mean()
                total -= 0.1 * behaviors[int(events.behaviors[place])]
                count += 1
        loss = objective(**inputs)["loss"]
    assert count == (inputs["labels"] != IGNORE).sum()
    torch.testing.assert_close(loss, total / count, rtol=1e-4, atol=1e-5)


def test_loss_and_gradient_of_a_step_do_not_depend_on_how_it_is_cut(model, train):
    """Uneven parts, so that a mean of means would differ."""
    windows, inputs = windows_and_inputs(train, model, 9)
    objective = NextEventObjective(model).eval()
    labels = int((inputs["labels"] != IGNORE).sum())
    collator = WindowCollator(train, model.encoder)
    found = []
    for cuts in ([9], [1, 6, 2]):
        objective.zero_grad()
        loss, start = 0.0, 0
        for size in cuts:
            part = collator(windows[start : start + size])
            piece = objective(**part, num_items_in_batch=labels)["loss"]
            piece.backward()
            loss, start = loss + float(piece), start + size
        gradients = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
        found.append((loss, gradients))
    objective.zero_grad()
    (whole, gradients), (cut, gradients_of_cut) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(float(objective(**inputs)["loss"]), rel=1e-5)
    assert len(gradients) > 3
    torch.testing.assert_close(gradients_of_cut, gradients, rtol=1e-3, atol=1e-6)
