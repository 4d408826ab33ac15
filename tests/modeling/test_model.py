"""The model for people: predictions, recommendations, new items."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import DuplicateError, ExplanationError, UnknownNameError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.types import Event, History
from tests import tiny


def logits_of(model, histories, batch_size=64):
    parts = [p.item_logits for _, p in model.predict(histories, batch_size=batch_size)]
    return torch.cat(parts)


@pytest.fixture
def bert():
    return tiny.tiny_model("bert", "token")


def test_predictions_do_not_depend_on_the_batches(model, log):
    histories = list(log)
    whole = logits_of(model, histories)
    assert whole.shape == (len(histories), len(model.catalogue))
    torch.testing.assert_close(logits_of(model, histories, 5), whole, rtol=0, atol=1e-4)
    rows = [rows for rows, _ in model.predict(histories, batch_size=5)]
    assert rows == [slice(0, 5), slice(5, 10), slice(10, 12)]


@pytest.mark.parametrize("training", [True, False])
def test_a_prediction_leaves_mode_and_gradients_as_they_were(bert, log, training):
    bert.train(training)
    stream = bert.predict(list(log), batch_size=4)
    next(stream)
    assert bert.training is bert.body.training is training
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert bert.training is training


def test_prediction_is_without_dropout_in_training_mode_too(bert, log):
    expected = logits_of(bert, [log.at(0)])
    torch.testing.assert_close(logits_of(bert.train(), [log.at(0)]), expected)


def test_log_odds_are_those_of_the_probability():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    codes = torch.tensor([0, 6, 3, 3, 1])
    p = logits.softmax(-1)[torch.arange(5), codes]
    torch.testing.assert_close(log_odds(logits, codes), torch.log(p / (1 - p)))


def test_log_odds_stay_exact_where_the_probability_is_one_or_the_item_alone():
    sure = log_odds(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(sure, torch.tensor([200.0 - math.log(2)]))
    assert log_odds(torch.tensor([[1.0]]), torch.tensor([0])).isfinite().all()


def test_recommendations_are_the_best_unseen_items_in_order(model, log):
    history = log.at(2)
    logits = logits_of(model, [history])[0].double().numpy()
    seen = set(history.item_ids())
    ids = model.catalogue.ids.to_pylist()
    expected = [ids[i] for i in np.argsort(-logits, kind="stable") if ids[i] not in seen]
    found = model.recommend(history, k=5)
    assert [r.item for r in found] == expected[:5]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    for recommendation in found:
        code = ids.index(recommendation.item)
        assert recommendation.probability == pytest.approx(p[code], rel=1e-5)
        assert recommendation.log_odds == pytest.approx(np.log(p[code] / (1 - p[code])), rel=1e-5)
        assert recommendation.title == model.catalogue.titles[code]
    everything = model.recommend(history, k=1000)
    assert [r.item for r in everything] == expected
    with_seen = model.recommend(history, k=1000, exclude_seen=False)
    assert {r.item for r in with_seen} == set(ids)


def test_candidates_are_ranked_among_themselves(bert, log):
    history = log.at(0)
    seen = history.item_ids()
    unseen = [item for item in bert.catalogue.ids.to_pylist() if item not in seen][:3]
    found = bert.recommend(history, candidates=[*unseen, seen[0]])
    assert {r.item for r in found} == set(unseen)
    everywhere = {r.item: r.probability for r in bert.recommend(history, k=100)}
    for r in found:  # of the whole catalogue, whatever is chosen among
        assert r.probability == pytest.approx(everywhere[r.item], rel=1e-12)
    assert bert.recommend(history, candidates=[]) == []
    with pytest.raises(UnknownNameError, match="nowhere"):
        bert.recommend(history, candidates=["nowhere"])


def test_a_user_never_seen_and_an_empty_history_get_recommendations(model):
    stranger = History.from_events("stranger", [Event("i3", "click", 5), Event("i4", "cart", 9)])
    nobody = History.from_events("nobody", [])
    for history in (stranger, nobody):
        found = model.recommend(history, k=4)
        assert len({r.item for r in found} - set(history.item_ids())) == 4
        assert all(0 < r.probability < 1 for r in found)


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_recommendation_is_refused(bert, log, k):
    with pytest.raises(ExplanationError, match=f"k is {k}"):
        bert.recommend(log.at(0), k=k)


def test_equal_scores_go_to_the_earlier_row_of_the_catalogue(bert, log, monkeypatch):
    flat = torch.zeros(1, len(bert.catalogue))
    monkeypatch.setattr(bert.item_head, "language_logits", lambda states, items: flat)
    found = bert.recommend(log.at(0), k=100)
    codes = bert.catalogue.index([r.item for r in found])
    assert (np.diff(codes) > 0).all()


@pytest.mark.parametrize("style", ["token", "text"])
@pytest.mark.parametrize("kind", tiny.BACKBONES)
def test_new_items_with_only_text_are_recommended_and_old_scores_stay(log, kind, style):
    model = tiny.tiny_model(kind, style)
    histories = [log.at(0), log.at(5)]
    before = logits_of(model, histories)
    known = len(model.catalogue)
    new = pa.table({"item_id": ["new1", "new2"], "title": ["small red lamp", "old film"]})
    model.add_items(Catalogue.from_table(new))
    after = logits_of(model, histories)
    assert after.shape[1] == known + 2
    torch.testing.assert_close(after[:, :known], before, rtol=0, atol=1e-4)
    found = {r.item: r for r in model.recommend(histories[0], k=100)}
    assert {"new1", "new2"} < found.keys()
    assert found["new2"].title == "old film"
    assert math.isfinite(found["new1"].log_odds)
    assert found["new1"].log_odds != found["new2"].log_odds
    visit = History.from_events("u", [Event("i1", "click", 1), Event("new1", "click", 2)])
    assert logits_of(model, [visit]).isfinite().all()
    with pytest.raises(DuplicateError, match="new1"):
        model.add_items(Catalogue.from_table(new))
    assert len(model.catalogue) == known + 2


def test_items_are_added_without_the_adapter_and_without_leaving_training(bert):
    new = Catalogue.from_table(pa.table({"item_id": ["twin"], "title": [""]}))
    text = bert.catalogue.texts[4]
    twin = Catalogue(new.ids, [text], [text], new.table)
    bert.train()
    bert.add_items(twin)
    rows = bert.first_item + torch.tensor([4, len(bert.catalogue) - 1])
    old, added = bert.embeddings.words[rows]
    torch.testing.assert_close(old, added, rtol=0, atol=1e-5)
    assert all(module.training for module in bert.body.modules())


@pytest.mark.parametrize("style", ["token", "text"])
def test_residual_dropout_is_of_items_and_silent_outside_training(log, style, tmp_path):
    config = tiny.run_config(style=style, model={"residual_dropout": 0.9})
    model = InfluenceModel.build(config, log)
    with torch.no_grad():
        model.embeddings.residual += torch.randn_like(model.embeddings.residual)
    model.save_pretrained(tmp_path)
    for found in (model, InfluenceModel.from_pretrained(tmp_path)):
        words = found.embeddings.project(found.embeddings.words)
        whole = words + found.embeddings.residual
        found.train()
        dropped = (found.item_vectors() == words[found.first_item :]).all(dim=1).float().mean()
        assert dropped > 0.5
        kept = slice(found.first_item)
        assert torch.equal(found.embeddings(kept), whole[kept])
        assert torch.equal(found.eval().item_vectors(), whole[found.first_item :])


def test_an_added_field_moves_the_prediction_once_it_is_learned(log):
    model = InfluenceModel.build(tiny.run_config(rendering={"template": "fused"}), log).eval()
    history = log["u7"]
    valued = dataclasses.replace(history, values=np.where(np.arange(len(history)) == 2, 1, 5))
    for learned in (False, True):
        if learned:
            with torch.no_grad():
                model.embeddings.residual += torch.randn_like(model.embeddings.residual)
        (_, one), (_, other) = (next(model.predict([h])) for h in (history, valued))
        assert torch.equal(one.item_logits, other.item_logits) is not learned
