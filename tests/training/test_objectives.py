"""The loss against one written out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.config.model import ItemHeadConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError
from llm_influence.modeling import backbone as masks
from llm_influence.rendering.batch import collate
from llm_influence.training.augmentation import EventDropout, Negatives, half_popular
from llm_influence.training.batches import IGNORE, Window, WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from tests import tiny
from tests.training.runs import step_in_parts


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


@pytest.fixture
def with_loss(model, monkeypatch):
    """Gives the model's objective with a loss that draws from ``negatives``."""

    def make(loss, negatives):
        head = ItemHeadConfig(loss=loss)
        monkeypatch.setattr(model, "config", model.config.model_copy(update={"item_head": head}))
        return NextEventObjective(model, negatives=negatives).eval()

    return make


@pytest.mark.parametrize("loss", ["full", "sampled", "gbce"])
def test_loss_and_gradient_of_a_step_do_not_depend_on_how_it_is_cut(model, train, loss, with_loss):
    """Uneven parts, so that a mean of means would differ."""
    windows, inputs = windows_and_inputs(train, model, 9)
    objective = with_loss(loss, None if loss == "full" else Negatives(np.ones(30), 9))
    collator = WindowCollator(train, model.encoder)
    found = [step_in_parts(objective, collator, windows, cuts) for cuts in ([9], [1, 6, 2])]
    objective.zero_grad()
    (whole, gradients), (cut, gradients_of_cut) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(float(objective(**inputs)["loss"]), rel=1e-5)
    assert len(gradients) > 3
    torch.testing.assert_close(gradients_of_cut, gradients, rtol=1e-3, atol=1e-6)


# --- no label is read before it is asked for -----------------------------------------------

SEEN = 2
"""Events that stay as they are; everything from the event after them on is changed."""
WINDOW = Window(user=7, start=0, stop=5)


def anything(future, past_time, draw):
    """Other items, behaviours, values and times."""
    size = len(future["items"])
    return {
        "items": (future["items"] + draw.integers(1, 30, size)) % 30,
        "behaviors": draw.integers(0, 3, size),
        "values": draw.integers(1, 6, size),
        "timestamps": past_time + np.cumsum(draw.integers(0, 10**7, size)),
    }


def shuffled(future, past_time, draw):
    """The same events in another order, each at another's time."""
    order = np.roll(np.arange(len(future["items"])), 1)
    moved = {name: column[order] for name, column in future.items()}
    return moved | {"timestamps": future["timestamps"]}


def years_later(future, past_time, draw):
    """The same events after a long silence: the gap of the very event that is asked for."""
    return future | {"timestamps": future["timestamps"] + 10**8}


def same_second(future, past_time, draw):
    """The same events, all of them in the second of the last one that was seen."""
    return future | {"timestamps": np.full(len(future["items"]), past_time)}


def with_future(log, change):
    """The log in which only what comes after the first events of one user is changed."""
    start, end = (int(log.offsets[WINDOW.user + n]) for n in (0, 1))
    first, columns = start + SEEN, ("items", "behaviors", "values", "timestamps")
    future = {name: getattr(log, name)[first:end] for name in columns}
    changed = change(future, log.timestamps[first - 1], np.random.default_rng(0))
    arrays = {name: getattr(log, name).copy() for name in columns}
    for name, column in arrays.items():
        column[first:end] = changed[name]
    return replace(log, **arrays)


def label_logits(model, log, dropout=None):
    """(L, I + behaviours) the logits that the loss holds against the labels of the window."""
    heard = []
    heads = (model.item_head, model.behavior_head)
    hooks = [head.register_forward_hook(lambda *call: heard.append(call[-1])) for head in heads]
    inputs = WindowCollator(log, model.encoder, dropout)([WINDOW])
    with torch.no_grad():
        NextEventObjective(model).eval()(**inputs)
    for hook in hooks:
        hook.remove()
    return torch.cat(heard, dim=1)


@pytest.mark.parametrize("change", [anything, shuffled, years_later, same_second])
@pytest.mark.parametrize("dropout", [None, EventDropout(0.9, share=1.0)])
def test_nothing_that_comes_later_moves_a_prediction_of_the_loss(model, train, change, dropout):
    """Where a token is a unit, the shapes stay and so does every bit."""
    before = label_logits(model, train, dropout)
    after = label_logits(model, with_future(train, change), dropout)
    assert before.shape == after.shape == (WINDOW.stop + 1, 33)
    close = 0 if model.encoder.style == "token" else 1e-5
    torch.testing.assert_close(after[: SEEN + 1], before[: SEEN + 1], rtol=0, atol=close)
    if dropout is None:  # and what does come later is felt by what comes after it
        assert ((after - before)[SEEN + 1 :].abs().amax(dim=1) > 1e-4).all()


def test_without_the_mask_the_future_would_be_seen(train, monkeypatch):
    def both_ways(batch):
        return batch.attention_mask[:, None, None].expand(-1, 1, batch.input_ids.shape[1], -1)

    model = tiny.tiny_model("bert", "token")
    monkeypatch.setattr(masks, "event_causal_mask", both_ways)
    before, after = (label_logits(model, log) for log in (train, with_future(train, anything)))
    assert ((after - before)[: SEEN + 1].abs().amax(dim=1) > 1e-4).all()


# --- losses that draw ----------------------------------------------------------------------


def test_with_every_item_drawn_the_sampled_loss_is_the_full_cross_entropy(model, train, with_loss):
    _, inputs = windows_and_inputs(train, model, 5)
    with torch.no_grad():
        full = NextEventObjective(model).eval()(**inputs)["loss"]
        sampled = with_loss("sampled", Negatives(np.ones(30), 30))(**inputs)["loss"]
        fewer = with_loss("sampled", Negatives(np.ones(30), 8))(**inputs)["loss"]
    torch.testing.assert_close(sampled, full, rtol=1e-5, atol=1e-6)
    assert abs(float(fewer - full)) > 0.05


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
def test_only_items_that_are_read_asked_for_or_drawn_get_a_gradient(
    model, train, loss, with_loss, monkeypatch
):
    windows, inputs = windows_and_inputs(train, model, 2)
    negatives = Negatives(half_popular(train.items, 30), 5, seed=1)
    objective = with_loss(loss, negatives)
    monkeypatch.setattr(model, "item_vectors", lambda: pytest.fail("all item vectors were made"))
    objective.zero_grad()
    objective(**inputs, step=3)["loss"].backward()
    moved = model.units.residual.grad.abs().sum(dim=1)[model.first_item :].nonzero()[:, 0]
    objective.zero_grad()
    needed = {int(i) for w in windows for i in train.at(w.user).items}
    needed |= set(negatives.draw(3).tolist())
    assert set(moved.tolist()) <= needed
    assert set(negatives.draw(3).tolist()) <= set(moved.tolist())
    assert len(needed) < 30


def test_smoothing_labels_over_items_that_are_not_scored_is_refused(model):
    with pytest.raises(ConfigError, match="label_smoothing"):
        NextEventObjective(model, label_smoothing=0.1, negatives=Negatives(np.ones(30), 5))


def test_products_of_a_step_have_few_shapes(model, train, with_loss, monkeypatch):
    """Each new shape costs memory that is not given back."""
    _, inputs = windows_and_inputs(train, model, 2)
    objective, shapes = with_loss("sampled", Negatives(np.ones(30), 9)), set()
    forward = model.item_head.forward

    def noting(states, items):
        shapes.add(items.shape)
        return forward(states, items)

    monkeypatch.setattr(model.item_head, "forward", noting)
    with torch.no_grad():
        losses = {float(objective(**inputs, step=step)["loss"]) for step in range(6)}
    assert len(losses) == 6
    assert len(shapes) == 1
