"""The list of recommendations as a target."""

import numpy as np
import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.target import Slate, bind, slate_ndcg
from llm_influence.errors import ExplanationError
from llm_influence.influence.influence import from_arrow
from llm_influence.modeling.scoring import ItemScores
from llm_influence.types import Event, History

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
    np.testing.assert_allclose(found.scores, lost, atol=1e-9)
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
    assert np.isfinite(Explainer(bert, name).explain(log.at(0), Slate()).scores).all()
