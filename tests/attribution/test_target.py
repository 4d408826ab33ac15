"""What can be explained, and how it is named."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_influence.attribution.drawn import Drawn
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.recommended import slate_ndcg
from llm_influence.attribution.target import (
    Behavior,
    Contrast,
    Item,
    Slate,
    bind,
    parse_target,
    with_ranks,
)
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError
from llm_influence.influence.influence import from_arrow
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores, log_odds
from llm_influence.types import Event, History
from tests import tiny


def values(target, model, histories):
    bound = bind(target, model, histories)
    ((_, prediction),) = model.predict(histories)
    return bound.values(prediction, torch.arange(len(histories))), prediction


def test_top1_is_each_historys_own_first_recommendation(model, log):
    histories = list(log)
    bound = bind("top1", model, histories)
    best = [model.recommend(history, 1)[0] for history in histories]
    assert list(bound.ids) == [r.item for r in best]
    assert list(bound.names) == [r.title for r in best]
    assert len(set(bound.ids)) > 1
    found, _ = values("top1", model, histories)
    assert found.tolist() == pytest.approx([r.log_odds for r in best], abs=1e-4)


def test_an_item_and_a_behaviour_are_log_odds(model, log):
    histories = [log.at(0), log.at(9)]
    for target in ("i7", Item("i7")):
        found, prediction = values(target, model, histories)
        torch.testing.assert_close(found, log_odds(prediction.item_logits, torch.tensor([7, 7])))
    for target in ("cart", Behavior("cart")):
        found, prediction = values(target, model, histories)
        code = model.encoder.vocabulary.behaviors.index("cart")
        p = prediction.behavior_logits.double().softmax(-1)[:, code]
        torch.testing.assert_close(found.double(), torch.log(p / (1 - p)), rtol=0, atol=1e-4)


def test_a_contrast_is_a_difference_of_logits_and_antisymmetric(model, log):
    histories = [log.at(0), log.at(9)]
    found, prediction = values(Contrast("i7", "i2"), model, histories)
    torch.testing.assert_close(found, prediction.item_logits[:, 7] - prediction.item_logits[:, 2])
    turned, _ = values(Contrast("i2", "i7"), model, histories)
    assert torch.equal(found, -turned)
    explainer = Explainer(model, "leave_one_out")
    one, other = (explainer.explain(log.at(0), Contrast(*p)) for p in (("i7", "i2"), ("i2", "i7")))
    np.testing.assert_allclose(one.values, -other.values, atol=1e-5)
    assert (one.target, one.target_id) == ("contrast", "i7 over i2")
    titles = model.catalogue.titles
    assert one.target_name == f"{titles[7]} over {titles[2]}"


def test_a_drawn_item_is_compared_with_the_mean_of_all_items(model, log):
    histories = [log.at(0), log.at(9)]
    target = Drawn(4, 2, number=3)
    found, prediction = values(target, model, histories)
    codes = torch.from_numpy(target.codes(histories, model.encoder.vocabulary.counts))
    own = prediction.item_logits.gather(1, codes).mean(dim=1)
    torch.testing.assert_close(found, own - prediction.item_logits.mean(dim=1))
    record = Explainer(model, "leave_one_out").explain(log.at(0), target)
    assert (record.target, record.target_id) == ("drawn", f"i{codes[0, 0]}, i{codes[0, 1]}")
    assert np.isnan(record.prediction)
    assert "the mean of all items" in record.to_text()


def codes_of(target, histories, items=50):
    return target.codes(histories, np.zeros(items, np.int64))


def test_draws_depend_on_the_user_and_the_seed_alone(log):
    histories = list(log)
    codes = codes_of(Drawn(2), histories).tolist()
    assert codes == [codes_of(Drawn(2), [history])[0].tolist() for history in histories]
    assert codes_of(Drawn(8), histories).tolist() == codes
    assert codes_of(Drawn(2, seed=1), histories).tolist() != codes
    every = [codes_of(Drawn(5, 3, number=n), histories) for n in range(5)]
    assert all(len(set(items)) == 15 for items in np.concatenate(every, axis=1).tolist())


def test_popular_items_are_drawn_more_often(log):
    counts = np.array([997, *[0] * 99])
    draws = [Drawn(1, 1, "popularity", seed).codes(list(log), counts) for seed in range(40)]
    assert (np.concatenate(draws) == 0).mean() == pytest.approx(998 / 1097, abs=0.05)


@pytest.mark.parametrize(
    "target", [Drawn(0), Drawn(2, number=2), Drawn(16, 2), Drawn(1, 0), Drawn(by="rank")]
)
def test_impossible_draws_are_refused(target, log):
    with pytest.raises(ExplanationError, match="draw"):
        codes_of(target, [log.at(0)], items=30)


def test_items_without_a_title_are_named_by_their_id():
    log = BehaviorLog.read(tiny.events_table())
    config = tiny.run_config("bert", rendering={"template": "item"})
    model = InfluenceModel.build(config, log).eval()
    assert list(bind("i7", model, [log.at(0)]).names) == ["i7"]
    assert list(bind(Contrast("i7", "i2"), model, [log.at(0)]).names) == ["i7 over i2"]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("top1", "top1"),
        ("item:42", Item("42")),
        ("item:a:b", Item("a:b")),
        ("behavior:click", Behavior("click")),
        ("contrast:42,50", Contrast("42", "50")),
        ("slate:5", Slate(5)),
        ("drawn:4", Drawn(4)),
        ("drawn:4,16", Drawn(4, 16)),
        ("drawn:2,1,popularity", Drawn(2, 1, "popularity")),
        ("slate", "slate"),
        ("i7", "i7"),
        ("urn:7", "urn:7"),
    ],
)
def test_a_target_is_read_from_text(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["contrast:", "contrast:42", "contrast:,50", "contrast:42,"])
def test_half_a_contrast_is_refused(text):
    with pytest.raises(ExplanationError, match="contrast:CHOSEN,OTHER"):
        parse_target(text)


@pytest.mark.parametrize("text", ["drawn:", "drawn:many", "drawn:4,best", "drawn:4,1,uniform,2"])
def test_draws_of_no_number_or_an_unknown_kind_are_refused(text):
    with pytest.raises(ExplanationError, match="drawn:DRAWS"):
        parse_target(text)


@pytest.mark.parametrize("text", ["slate:", "slate:ten", "slate:-1"])
def test_a_slate_of_no_number_is_refused(text):
    with pytest.raises(ExplanationError, match="slate:K"):
        parse_target(text)


def test_a_name_of_both_an_item_and_a_behaviour_must_be_made_clear():
    def renamed(table):
        ids = ["click" if item == "i0" else item for item in table["item_id"].to_pylist()]
        place = table.column_names.index("item_id")
        return table.set_column(place, "item_id", pa.array(ids))

    log = BehaviorLog.read(
        renamed(tiny.events_table()), items=renamed(tiny.items_table()), users=tiny.users_table()
    )
    model = InfluenceModel.build(tiny.run_config("bert"), log).eval()
    with pytest.raises(ExplanationError, match=r"both.*Item\('click'\).*Behavior\('click'\)"):
        bind("click", model, [log.at(0)])
    assert bind(Item("click"), model, [log.at(0)]).kind == "item"
    assert bind(Behavior("click"), model, [log.at(0)]).kind == "behavior"


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("clik", ["'clik'", "'top1'", "30 item ids", "'cart', 'click', 'purchase'"]),
        (Item("i99"), ["'i99'", "add_items"]),
        (Contrast("i1", "i99"), ["'i99'"]),
        (Slate(0), ["k of a slate is 0", "at least 1"]),
        (Behavior("purchse"), ["'purchse'", "'cart', 'click', 'purchase'", "mean 'purchase'"]),
    ],
)
def test_an_unknown_target_is_named_with_the_valid_ones(bert, log, target, named):
    with pytest.raises(ExplanationError) as raised:
        bind(target, bert, [log.at(0)])
    assert all(part in str(raised.value) for part in named)


def test_top1_needs_an_unseen_item(bert):
    every = History.from_events("u", [Event(f"i{i}", "click", i) for i in range(30)])
    for target in ("top1", Slate(3)):
        with pytest.raises(ExplanationError, match=r"every item.*unseen"):
            bind(target, bert, [every])


# --- the list of recommendations ---

NONE = torch.full((1, 1), -1)


def by_hand(ranking, slate):
    """NDCG of one ranking of item codes against one slate, written out."""
    k = len(slate)
    gain = {item: k - place for place, item in enumerate(slate)}
    found = sum(gain.get(item, 0) / np.log2(2 + p) for p, item in enumerate(ranking[:k]))
    return found / sum((k - place) / np.log2(2 + place) for place in range(k))


def test_the_value_is_ndcg_with_the_slates_own_order_as_relevance():
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.normal(size=(20, 12)))
    slate = torch.from_numpy(np.stack([draw.permutation(12)[:4] for _ in range(20)]))
    found = slate_ndcg(logits, slate, NONE.expand(20, 1))
    rankings = logits.argsort(dim=1, descending=True).tolist()
    expected = [by_hand(r, s) for r, s in zip(rankings, slate.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected)
    assert len(set(found.tolist())) > 5


@pytest.mark.parametrize(
    ("order", "value"),
    [([2, 0, 4, 1, 3, 5], 1.0), ([2, 0, 4, 5, 3, 1], 1.0), ([1, 3, 5, 0, 2, 4], 0.0)],
)
def test_it_is_one_for_the_slate_in_its_order_and_zero_without_it(order, value):
    logits = torch.zeros(1, 6)
    logits[0, order] = torch.arange(6.0, 0, -1)
    assert slate_ndcg(logits, torch.tensor([[2, 0, 4]]), NONE).item() == pytest.approx(value)
    turned = slate_ndcg(logits, torch.tensor([[4, 0, 2]]), NONE).item()
    assert turned < 1


def test_items_left_out_are_not_ranked_and_ties_go_to_the_earlier_row():
    logits = torch.tensor([[9.0, 1.0, 3.0, 3.0]])
    assert slate_ndcg(logits, torch.tensor([[2, 3]]), torch.tensor([[0]])) == pytest.approx(1)
    assert slate_ndcg(logits, torch.tensor([[2, 3]]), NONE) < 1
    shorter = slate_ndcg(logits, torch.tensor([[2, 3, 1, -1]]), torch.tensor([[0]]))
    assert shorter == pytest.approx(1)


def test_a_slate_is_the_list_of_recommendations_and_whole_with_all_events(model, log):
    histories = [log.at(row) for row in (0, 9, 3)]
    bound = bind(Slate(5), model, histories)
    for history, ids, codes in zip(histories, bound.ids, bound.codes, strict=True):
        expected = [found.item for found in model.recommend(history, 5)]
        assert ids == ", ".join(expected)
        assert codes.tolist() == model.catalogue.index(expected).tolist()
    first = model.catalogue.titles[bound.codes[0, 0]]
    assert bound.names[0].startswith(f"top 5: {first}; ")
    influence = Explainer(model, "leave_one_out").explain(log.at(9), Slate(5))
    assert influence.full_value == 1
    assert 0 <= influence.base_value < 1
    assert np.isnan(influence.prediction)
    assert (influence.target, influence.unit) == ("slate", "NDCG")
    assert np.isnan(from_arrow(influence.to_arrow())[0].prediction)


def test_scores_are_what_the_list_loses_without_an_event(bert, log):
    history = bert.encoder.trim(log.at(9))
    seen = torch.from_numpy(bert.encoder.vocabulary.item_codes(history).astype(np.int64))[None]
    slate = bert.score([history]).best(10, seen=seen).codes[0].tolist()
    kept = [history.keep(np.arange(len(history)) != i) for i in range(len(history))]
    lost = []
    for shorter in kept:
        ((_, prediction),) = bert.predict([shorter])
        best = ItemScores.of(prediction.item_logits).best(10, seen=seen)  # seen with all events
        lost.append(1 - by_hand(best.codes[0].tolist(), slate))
    found = Explainer(bert, "leave_one_out").explain(history, Slate(10))
    np.testing.assert_allclose(found.values, lost, atol=1e-9)
    assert max(lost) > 0.01


def test_a_slate_is_as_long_as_there_are_unseen_items(bert):
    most = History.from_events("u", [Event(f"i{i}", "click", i) for i in range(28)])
    assert bind(Slate(10), bert, [most]).codes[0].tolist()[2:] == [-1] * 8
    assert Explainer(bert).explain(most, Slate(10)).full_value == 1


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.gradients])
def test_methods_that_follow_gradients_refuse_it_and_name_those_that_do_not(bert, log, name):
    with pytest.raises(ExplanationError, match=f"'{name}'.*no gradient.*leave_one_out"):
        Explainer(bert, name).explain(log.at(0), Slate())
    with pytest.raises(ExplanationError, match=f"'{name}'.*no gradient"):
        Explainer(bert, agree_with=name).explain(log.at(0), Slate())


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if not spec.gradients])
def test_all_other_methods_take_it(bert, log, name):
    assert np.isfinite(Explainer(bert, name).explain(log.at(0), Slate()).values).all()


@pytest.mark.parametrize("target", ["top1", Item("i7")])
def test_an_item_has_its_rank_among_the_unseen_items(bert, log, target):
    """Against a sort of all scores; an item of the history has no rank."""
    histories = [log.at(row) for row in range(6)]
    (bound,) = with_ranks([bind(target, bert, histories)], bert, histories)
    for history, code, place in zip(histories, bound.codes.tolist(), bound.places, strict=True):
        seen = set(bert.encoder.vocabulary.item_codes(history).tolist())
        logits = next(bert.predict([history]))[1].item_logits[0]
        order = [n for n in logits.argsort(descending=True, stable=True).tolist() if n not in seen]
        assert place == (None if code in seen else (order.index(code) + 1, len(order)))
    assert target == "top1" or None in bound.places
    record = Explainer(bert, "leave_one_out").explain(histories[0], target)
    assert (record.target_rank, record.candidates) == (bound.places[0] or (None, None))
