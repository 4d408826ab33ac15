"""The loss of fine-tuning against one written by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llm_influence.config.model import ItemHeadConfig
from llm_influence.errors import ConfigError
from llm_influence.evaluation.evaluate import (
    by_head,
    compare_heads,
    head_metrics,
    predict_rows,
)
from llm_influence.modeling import backbone as masks
from llm_influence.rendering.encoder import collate
from llm_influence.rendering.time_words import query_codes
from llm_influence.run import Run
from llm_influence.training.augmentation import EventDropout, Negatives, events_before, half_popular
from llm_influence.training.batches import IGNORE, Window, WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from llm_influence.training.item_losses import gbce, sampled_softmax
from llm_influence.training.objective import NextEventObjective
from tests import tiny
from tests.training.runs import (
    NO_DROPOUT,
    config_in,
    feedback_head,
    largest_difference,
    step_in_parts,
    weights,
)


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
    result = [step_in_parts(objective, collator, windows, cuts) for cuts in ([9], [1, 6, 2])]
    objective.zero_grad()
    (whole, gradients), (cut, gradients_of_cut) = result
    assert cut == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(float(objective(**inputs)["loss"]), rel=1e-5)
    assert len(gradients) > 3
    torch.testing.assert_close(gradients_of_cut, gradients, rtol=1e-3, atol=1e-6)


# --- no label is read before its prediction -----------------------------------------------

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
    """The same events after a long silence: the gap before the predicted event."""
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
def test_only_items_that_are_read_predicted_or_drawn_get_a_gradient(
    model, train, loss, with_loss, monkeypatch
):
    windows, inputs = windows_and_inputs(train, model, 2)
    negatives = Negatives(half_popular(train.items, 30), 5, seed=1)
    objective = with_loss(loss, negatives)
    monkeypatch.setattr(model, "item_vectors", lambda: pytest.fail("all item vectors were made"))
    objective.zero_grad()
    objective(**inputs, step=3)["loss"].backward()
    moved = model.embeddings.residual.grad.abs().sum(dim=1)[model.first_item :].nonzero()[:, 0]
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


# --- formulas of losses over drawn items ---------------------------------------------------------


ITEMS = 5
TRUTH = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
CHANCES = torch.tensor([0.9, 0.2, 0.5, 0.35, 0.6], dtype=torch.float64)


def expected_gradient(logits, chances, loss):
    """Of ``loss(own, others, hits, drawn)`` over labels from `TRUTH` and over all draws."""
    logits = logits.clone().requires_grad_()
    labels, total = torch.arange(ITEMS), torch.zeros((), dtype=torch.float64)
    for coins in itertools.product([False, True], repeat=ITEMS):
        inside = torch.tensor(coins)
        drawn = inside.nonzero()[:, 0]
        chance = torch.where(inside, chances, 1 - chances).prod()
        others, hits = logits[drawn].expand(ITEMS, -1), labels[:, None] == drawn
        total = total + chance * (TRUTH * loss(logits, others, hits, drawn)).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


def test_the_sampled_softmax_is_lowest_at_the_true_distribution_however_items_are_drawn():
    def corrected(own, others, hits, drawn):
        return sampled_softmax(own, others, hits, CHANCES.log(), CHANCES[drawn].log())

    def uncorrected(own, others, hits, drawn):
        return sampled_softmax(own, others, hits, torch.zeros(ITEMS), torch.zeros(len(drawn)))

    at_truth = expected_gradient(TRUTH.log() + 3, CHANCES, corrected)
    torch.testing.assert_close(at_truth, torch.zeros(ITEMS, dtype=torch.float64))
    assert expected_gradient(TRUTH.log(), CHANCES, uncorrected).abs().max() > 0.02
    assert expected_gradient(torch.zeros(ITEMS).double(), CHANCES, corrected).abs().max() > 0.02


def test_with_all_items_drawn_evenly_the_sampled_softmax_is_the_full_one():
    logits = torch.randn(4, ITEMS, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 0, 4, 3])
    rows, hits = torch.arange(4), labels[:, None] == torch.arange(ITEMS)
    log_q = torch.full((ITEMS,), math.log(0.3))
    result = sampled_softmax(logits[rows, labels], logits, hits, log_q[labels], log_q)
    torch.testing.assert_close(result, F.cross_entropy(logits, labels, reduction="none"))


def test_gbce_is_its_formula():
    """Two negatives of 9 items at rate 2 / 8, and the label drawn once by accident."""
    own, others = torch.tensor([0.7]), torch.tensor([[-0.2, 0.7, 1.1]])
    hits = torch.tensor([[False, True, False]])
    result = gbce(own, others, hits, rate=0.25, items=9, calibration=0.75)
    beta = 0.25 * (0.75 * (1 - 1 / 0.25) + 1 / 0.25)

    def sigma(x):
        return 1 / (1 + math.exp(-x))

    terms = math.log(sigma(0.7) ** beta) + math.log(1 - sigma(-0.2)) + math.log(1 - sigma(1.1))
    assert result.tolist() == pytest.approx([-terms / 3])
    plain = gbce(own, others, hits, rate=0.25, items=9, calibration=0)
    logits, truth = torch.tensor([0.7, -0.2, 1.1]), torch.tensor([1.0, 0, 0])
    assert float(plain) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, truth)))


def test_fully_calibrated_gbce_is_lowest_at_the_true_probabilities():
    chances = torch.full((ITEMS,), 0.3, dtype=torch.float64)

    def at(calibration):
        def loss(own, others, hits, drawn):
            return gbce(own, others, hits, rate=0.3, items=ITEMS, calibration=calibration)

        return expected_gradient(torch.logit(TRUTH), chances, loss)

    torch.testing.assert_close(at(1.0), torch.zeros(ITEMS, dtype=torch.float64))
    assert (at(0.0) < 0).all()  # plain BCE wants more than the truth


# --- feedback ------------------------------------------------------------------------------------


KINDS = ("binary", "ordinal", "regression")
SEEN, WINDOW = 2, Window(user=7, start=0, stop=5)


@pytest.fixture(scope="module", params=KINDS)
def answering(request):
    alone = {"item_head": {"weight": 0.0}, "behavior_head": {"weight": 0.0}, "when": True}
    return tiny.tiny_model("bert", "token", feedback_head=feedback_head(request.param), **alone)


def collator(model, log, dropout=None):
    return WindowCollator(log, model.encoder, dropout, feedback=model.config.feedback, when=True)


def test_the_loss_is_that_of_every_label_after_the_prefix_before_it(answering, train):
    """Each prefix is read alone, at the moment of its event: no value of it can have helped."""
    windows = list(WindowDataset(train, answering.encoder))[:5]
    inputs = collator(answering, train)(windows)
    link, total, events = answering.feedback_head.link, 0.0, 0
    with torch.no_grad():
        for window in windows:
            history = train.at(window.user).keep(slice(window.start, window.stop + 1))
            for place, value in enumerate(history.values):
                events += 1
                if np.isnan(value):
                    continue
                moment = int(history.timestamps[place])
                prefix = replace(history.keep(slice(place)), query_time=moment)
                states = answering.query(collate(answering.encoder.encode([prefix])))
                codes = (
                    torch.tensor([int(column[place])])
                    for column in (history.items, history.behaviors)
                )
                scores = answering.feedback_scores(states, *codes)
                total += float(link.loss(scores, torch.tensor([value])))
        loss = float(NextEventObjective(answering).eval()(**inputs)["loss"])
    assert (inputs["labels"] != IGNORE).sum() == events
    assert loss == pytest.approx(total / events / answering.feedback_head.scale.share, rel=1e-4)


@pytest.mark.parametrize("dropout", [None, EventDropout(0.9, share=1.0)])
def test_a_label_and_all_that_follows_move_nothing_that_predicts_it(train, dropout):
    model = tiny.tiny_model("bert", "token", feedback_head=feedback_head(), when=True)
    first, end = int(train.offsets[7]) + SEEN, int(train.offsets[8])
    values = train.values.copy()
    values[first:end] = np.where(np.isnan(values[first:end]), 5, 6 - values[first:end])
    later = replace(train, values=values)  # the answer of event SEEN and of all behind it

    def scores(log):
        heard = []
        hook = model.feedback_head.register_forward_hook(lambda *call: heard.append(call[-1]))
        inputs = collator(model, log, dropout)([WINDOW])
        inputs["feedback_labels"] = torch.full_like(inputs["feedback_labels"], 4.0)  # ask them all
        with torch.no_grad():
            NextEventObjective(model).eval()(**inputs)
        hook.remove()
        return heard[0]

    before, after = scores(train), scores(later)
    assert len(before) == WINDOW.stop + 1
    torch.testing.assert_close(after[: SEEN + 1], before[: SEEN + 1], rtol=0, atol=0)
    if dropout is None:
        assert ((after - before)[SEEN + 1 :].abs() > 1e-6).all()


@pytest.mark.parametrize("dropout", [EventDropout(), EventDropout(0.9, share=1.0)])
def test_the_gap_to_a_label_is_measured_from_the_last_event_that_is_seen(train, dropout):
    encoder = tiny.tiny_model().encoder
    windows = list(WindowDataset(train, encoder))
    inputs = WindowCollator(train, encoder, dropout, when=True)(windows)
    assert "label_when" not in WindowCollator(train, encoder, dropout)(windows)
    lost = 0
    for row, window in enumerate(windows):
        times = train.at(window.user).timestamps[window.start : window.stop + 1]
        kept = dropout.kept(len(times) - 1, epoch=0, user=window.user, start=window.start)
        lost += int((~kept).sum())
        for place, count in enumerate(events_before(kept)):
            result = int(inputs["label_when"][row, place])
            if not count:
                assert result == 0
                continue
            last = times[:-1][kept][count - 1]
            expected = query_codes(np.array([last]), times[place : place + 1], np.ones(1, bool))
            assert result == expected[0] > 0
    assert bool(lost) == bool(dropout.rate)


def test_a_step_does_not_depend_on_how_it_is_cut(answering, train):
    """One part holds no answer at all; its head must still be part of the graph."""
    windows = list(WindowDataset(train, answering.encoder))[:6]
    objective = NextEventObjective(answering).eval()
    render = collator(answering, train)
    result = [step_in_parts(objective, render, windows, cuts) for cuts in ([6], [1, 5])]
    objective.zero_grad()
    assert result[0][0] == pytest.approx(result[1][0], rel=1e-5)
    torch.testing.assert_close(result[0][1], result[1][1], rtol=1e-3, atol=1e-6)
    silent = collator(answering, train)(windows[:2])
    silent["feedback_labels"].fill_(torch.nan)
    objective(**silent)["loss"].backward()
    assert all(p.grad is not None for p in answering.feedback_head.parameters())
    objective.zero_grad()


def test_a_head_of_weight_zero_is_not_trained(answering, train):
    windows = list(WindowDataset(train, answering.encoder))[:3]
    objective = NextEventObjective(answering).eval()
    objective(**collator(answering, train)(windows))["loss"].backward()
    for idle in (answering.item_head, answering.behavior_head):
        assert not any(p.requires_grad or p.grad is not None for p in idle.parameters())
    assert answering.feedback_head.score.weight.grad.abs().max() > 0
    objective.zero_grad()


def test_with_defaults_the_loss_is_what_it_was(train):
    """Neither new head nor "when" in a model that does not ask for them."""
    model = tiny.tiny_model()
    assert model.feedback_head is None
    assert model.when is None
    windows = list(WindowDataset(train, model.encoder))[:4]
    with torch.no_grad():
        plain = NextEventObjective(model).eval()(**WindowCollator(train, model.encoder)(windows))
        with_gaps = NextEventObjective(model).eval()(
            **WindowCollator(train, model.encoder, when=True)(windows)
        )
    assert float(plain["loss"]) == float(with_gaps["loss"])


# --- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def liking(tmp_path_factory):
    """A run on a log in which even items are liked and odd ones are not, two examples a user."""
    table = tiny.events_table(users=40)
    likes = [float(int(item[1:]) % 2 == 0) for item in table["item_id"].to_pylist()]
    table = table.append_column("label", [likes])
    config = config_in(
        tmp_path_factory.mktemp("liking"),
        table,
        data={"split": {"held_out": 2, "min_events": 5}},
        model={
            "feedback_head": feedback_head(label="label", positive_from=1.0),
            "when": True,
            **NO_DROPOUT,
        },
        train={"epochs": 6, "batch_size": 8, "learning_rate": 1e-2, "item_learning_rate": 3e-2},
    )
    return config, finetune(config)


def test_a_run_learns_what_is_liked_and_measures_every_head(liking):
    config, result = liking
    groups = by_head(result.test)
    assert groups.keys() == {"items", "behaviors", "feedback"}
    assert groups["feedback"]["auc"] > 0.8
    assert {"coverage@10", "popularity@10", "target_popularity"} < groups["items"].keys()
    run = Run.open(result.folder)
    drawn = [history.user_id for history in run.test_histories(len(run.split.log))]
    assert len(drawn) == len(set(drawn)) == len(run.split.test) / 2
    measured = predict_rows(run.model, run.split.test, config.evaluation, top=10)
    assert head_metrics(run.model, measured, 10) == pytest.approx(result.test, abs=1e-5)
    records = compare_heads(run.model, run.split, config.evaluation)
    assert [r["system"] for r in records["feedback"]] == [
        "llm_influence",
        "item mean",
        "mean of training",
    ]
    assert records["feedback"][0]["auc"] == pytest.approx(groups["feedback"]["auc"])
    assert records["feedback"][2]["auc"] == 0.5
    assert records["behaviors"][0]["accuracy"] == pytest.approx(groups["behaviors"]["accuracy"])


def test_a_checkpoint_brings_every_head_back(liking):
    _, result = liking
    again = finetune(liking[0], resume=True)
    assert again.test == pytest.approx(result.test)
    assert largest_difference(weights(again.folder), weights(result.folder)) == 0
    assert {"when.weight", "feedback_head.score.weight"} < weights(result.folder).keys()
