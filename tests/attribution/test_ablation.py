"""Leave-one-out, the sparse surrogate and coarse to fine, against truths known without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.attribution.ablation import CoarseToFine, SparseSurrogate
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.shapley import Shapley
from llm_influence.attribution.target import Contrast, Item
from llm_influence.errors import ExplanationError
from llm_influence.numerics import every_coalition
from llm_influence.rendering.encoder import collate
from llm_influence.types import History
from tests.attribution.stand_ins import bag_model, game_task, typed, weights

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
def test_an_additive_model_is_explained_whole_in_two_evaluations_more_than_events(removal):
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
    np.testing.assert_allclose(influence.values, expected, atol=1e-4)
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
    np.testing.assert_allclose(influence.values, expected, atol=1e-4)
    dropped = Explainer(model, "leave_one_out").explain(history, TARGET)
    assert dropped.quality.removal == "drop"
    assert not np.allclose(influence.values, dropped.values, atol=1e-3)


# --- sparse surrogate ---


def test_few_events_are_found_among_many_with_fewer_evaluations_than_events():
    worth = np.zeros(120)
    worth[[4, 50, 99]] = 2.0, -1.5, 3.0
    noise = np.random.default_rng(0)

    def game(masks):
        return masks @ worth + 0.01 * noise.normal(size=len(masks))

    found = SparseSurrogate(evaluations=100).run(game_task([game], [120]))
    assert set(np.argsort(-np.abs(found.scores[0]))[:3]) == {4, 50, 99}
    np.testing.assert_allclose(found.scores[0], worth, atol=0.05)
    assert (found.scores[0] == 0).sum() > 60
    assert found.evaluations[0] <= 102


def test_with_all_sets_asked_it_is_the_best_line_and_no_shapley_value():
    def game(masks):  # unanimity of three: Shapley 1/3 each, the best line has 1/4
        return masks[:, :3].all(1).astype(float)

    found = SparseSurrogate(evaluations=32).run(game_task([game], [5])).scores[0]
    masks = every_coalition(5)
    line = np.linalg.lstsq(np.column_stack([np.ones(32), masks]), game(masks), rcond=None)[0]
    np.testing.assert_allclose(found, line[1:], atol=1e-9)
    np.testing.assert_allclose(found, [0.25, 0.25, 0.25, 0, 0], atol=1e-9)


@pytest.mark.parametrize("players", [1, 2, 3])
def test_short_histories_are_weighed_too(players):
    worth = np.arange(1.0, players + 1)
    found = SparseSurrogate().run(game_task([lambda m: m @ worth], [players]))
    np.testing.assert_allclose(found.scores[0], worth, atol=1e-9)


def test_too_few_evaluations_are_refused():
    with pytest.raises(ExplanationError, match=r"9 evaluations for 20 events.*at least 10"):
        SparseSurrogate(evaluations=9).run(game_task([lambda m: m.sum(1)], [20]))


# --- coarse to fine ---


def needles(players, places):
    """An additive game in which few events matter, with a pair effect between the first two."""
    worth = np.full(players, 1e-3)
    worth[list(places)] = np.arange(2.0, 2.0 + len(places))
    first, second = places[:2]
    return worth, lambda masks: masks @ worth + masks[:, first] * masks[:, second]


def test_needles_in_a_long_history_are_found_and_scored():
    places = (7, 90, 91, 140)
    worth, game = needles(200, places)
    found = CoarseToFine(evaluations=300, blocks=20).run(game_task([game], [200]))
    assert found.evaluations[0] <= 300
    assert set(np.argsort(-found.scores[0])[:4]) == set(places)
    np.testing.assert_allclose(found.scores[0][[91, 140]], worth[[91, 140]], atol=0.15)
    np.testing.assert_allclose(found.scores[0][[7, 90]], worth[[7, 90]] + 0.5, atol=0.15)
    assert found.scores[0].sum() == pytest.approx(worth.sum() + 1, abs=1e-8)
    closed = found.scores[0][20:30]
    assert (closed == closed[0]).all()


def test_a_history_with_four_evaluations_an_event_is_explained_event_by_event():
    _, game = needles(10, (1, 2))
    whole = Shapley(evaluations=40, tolerance=0).run(game_task([game], [10]))
    found = CoarseToFine(evaluations=40).run(game_task([game], [10]))
    np.testing.assert_array_equal(found.scores[0], whole.scores[0])


def test_blocks_open_by_strength_as_far_as_the_evaluations_go():
    rng = np.random.default_rng(0)
    worth = np.repeat([5.0, 0.1, 3.0, 0.1, 4.0], 20) * (1 + 0.1 * rng.normal(size=100))
    task = game_task([lambda masks: masks @ worth], [100])
    found = CoarseToFine(evaluations=150, blocks=5).run(task)
    # room for 25 players: one block of 20 and the other four whole
    np.testing.assert_allclose(found.scores[0][:20], worth[:20], atol=1e-6)
    np.testing.assert_allclose(found.scores[0][80:], worth[80:].mean(), atol=1e-6)


def test_events_of_a_real_model_get_their_weights():
    model, history = bag_model(), typed(*(f"i{n}" for n in (3, 9, 4, 12, 8, 1, 2, 11)))
    found = Explainer(model, "coarse_to_fine", evaluations=30, blocks=2, share=1.0).explain(
        history, Contrast("i5", "i6")
    )
    assert found.values.sum() == pytest.approx(sum(weights(model, history, "i5", "i6")), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"blocks": 1}, "blocks is 1"),
        ({"share": 0.0}, "share is 0.0"),
        ({"evaluations": 50}, "least 78"),
    ],
)
def test_options_that_cannot_do_are_refused(options, named):
    with pytest.raises(ExplanationError, match=named):
        CoarseToFine(**options).run(game_task([needles(100, (1, 2))[1]], [100]))
