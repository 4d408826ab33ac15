"""An ensemble predicts the weighted average of its members, whose weights validation chooses."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_influence.config.data import SplitConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.errors import ModelError, ModelFolderError
from llm_influence.evaluation.evaluate import compare_heads, predict_rows
from llm_influence.modeling.ensemble import fit_weights
from llm_influence.modeling.model import Ensemble, InfluenceModel
from tests import tiny

FEEDBACK = {"feedback_head": {"weight": 1.0, "kind": "ordinal", "positive_from": 4.0, "hidden": 8}}


@pytest.fixture(scope="module")
def log():
    return tiny.small_log()


@pytest.fixture(scope="module")
def pair():
    """Two models that differ in backbone and rendering."""
    return tiny.tiny_model("bert", "token", **FEEDBACK), tiny.tiny_model("gru", "text", **FEEDBACK)


def prediction(model, log):
    return next(iter(model.predict(list(log))))[1]


def feedback(model, log):
    items, behaviors = torch.arange(len(log)), torch.zeros(len(log), dtype=torch.int64)
    return prediction(model, log).feedback(items, behaviors)


def test_an_ensemble_of_one_is_its_model(pair, log):
    own, one = prediction(pair[0], log), prediction(InfluenceModel.ensemble(pair[:1]), log)
    torch.testing.assert_close(one.item_logits, own.item_logits.log_softmax(dim=1))
    torch.testing.assert_close(one.behavior_logits, own.behavior_logits.log_softmax(dim=1))
    history = log.at(0)
    both = (m.recommend(history) for m in (InfluenceModel.ensemble(pair[:1]), pair[0]))
    for ours, theirs in zip(*both, strict=True):
        assert ours.item == theirs.item
        assert ours.log_odds == pytest.approx(theirs.log_odds, abs=1e-4)


def test_two_members_are_a_product_of_experts(pair, log):
    ensemble = InfluenceModel.ensemble(pair, [0.25, 0.75])
    for name in ("item_logits", "behavior_logits"):
        one, two = (getattr(prediction(model, log), name).softmax(dim=1) for model in pair)
        product = one**0.25 * two**0.75
        mixed = getattr(prediction(ensemble, log), name).exp()
        torch.testing.assert_close(mixed, product / product.sum(dim=1, keepdim=True))
        assert (mixed - one).abs().max() > 0.01
    one, two = (feedback(model, log) for model in pair)
    torch.testing.assert_close(feedback(ensemble, log), 0.25 * one + 0.75 * two)


def test_the_order_of_the_members_does_not_matter(pair, log):
    one = InfluenceModel.ensemble(pair, [0.25, 0.75])
    other = InfluenceModel.ensemble(pair[::-1], [0.75, 0.25])
    torch.testing.assert_close(prediction(one, log).item_logits, prediction(other, log).item_logits)
    assert [r.item for r in one.recommend(log.at(1))] == [
        r.item for r in other.recommend(log.at(1))
    ]


def test_it_is_evaluated_on_its_average(pair, log):
    split, ensemble = split_log(log, SplitConfig()), InfluenceModel.ensemble(pair, [0.5, 0.5])
    columns = predict_rows(ensemble, split.test, EvaluationConfig())
    logits = next(
        iter(ensemble.predict([split.test.history(row) for row in range(len(split.test))]))
    )[1]
    logs = logits.behavior_logits.double().numpy()
    behaviors = split.test.target_behaviors
    np.testing.assert_allclose(
        columns["behavior_log_probability"], logs[np.arange(len(logs)), behaviors], atol=1e-5
    )
    records = compare_heads(ensemble, split, EvaluationConfig())
    assert {"items", "behaviors", "feedback"} >= set(records) >= {"items", "behaviors"}


def test_it_is_saved_and_opened_as_one_folder(pair, log, tmp_path):
    ensemble = InfluenceModel.ensemble(pair, [0.25, 0.75])
    ensemble.save_pretrained(tmp_path)
    opened = InfluenceModel.from_pretrained(tmp_path)
    assert isinstance(opened, Ensemble)
    assert opened.weights == (0.25, 0.75)
    assert torch.equal(prediction(ensemble, log).item_logits, prediction(opened, log).item_logits)
    from_folders = InfluenceModel.ensemble([tmp_path / "member_0", tmp_path / "member_1"])
    assert from_folders.weights == (0.5, 0.5)


def test_a_damaged_description_is_named(pair, tmp_path):
    InfluenceModel.ensemble(pair).save_pretrained(tmp_path)
    (tmp_path / "ensemble.json").write_text(json.dumps({"weights": [1.0]}))
    with pytest.raises(ModelFolderError, match=r"ensemble\.json"):
        InfluenceModel.from_pretrained(tmp_path)


def test_another_catalogue_is_refused(pair):
    table = tiny.items_table()
    turned = BehaviorLog.read(tiny.events_table(), items=table.take(pa.array(range(29, -1, -1))))
    other = InfluenceModel.build(tiny.run_config("gru", model=FEEDBACK), turned)
    with pytest.raises(ModelError, match="model 2 has another catalogue"):
        InfluenceModel.ensemble([pair[0], other])
    with pytest.raises(ModelError, match="trained heads"):
        InfluenceModel.ensemble([pair[0], tiny.tiny_model("gru")])


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [-0.5, 1.5], [float("nan"), 1.0]])
def test_wrong_weights_are_refused(pair, weights):
    with pytest.raises(ModelError, match="whose sum is 1"):
        InfluenceModel.ensemble(pair, weights)


def test_what_needs_one_model_says_so(pair, log):
    with pytest.raises(ModelError, match=r"ensemble\.members\[0\]"):
        InfluenceModel.ensemble(pair).session(log.at(0)).recommend(3)


def test_the_fitted_weights_are_those_that_generated_the_targets():
    rng = np.random.default_rng(0)
    logs = 2 * rng.standard_normal((3, 4000, 12))
    truth = np.array([0.7, 0.3, 0.0])
    mixed = np.tensordot(truth, logs, axes=1)
    targets = (mixed + rng.gumbel(size=mixed.shape)).argmax(axis=1)
    weights = fit_weights(logs, targets)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights, truth, atol=0.04)


def test_chosen_weights_are_at_least_as_likely_as_equal_ones(pair, log):
    validation, ensemble = split_log(log, SplitConfig()).validation, InfluenceModel.ensemble(pair)

    def likelihood():
        histories = [validation.history(row) for row in range(len(validation))]
        logits = torch.cat([p.item_logits for _, p in ensemble.predict(histories)])
        return float(logits[range(len(logits)), validation.target_items].mean())

    before = likelihood()
    weights = ensemble.choose_weights(validation)
    assert sum(weights) == pytest.approx(1)
    assert likelihood() > before


def test_new_items_are_added_to_every_member(log):
    ensemble = InfluenceModel.ensemble([tiny.tiny_model("bert"), tiny.tiny_model("gpt2")])
    ensemble.add_items(Catalogue.from_table(tiny.items_table(31).slice(30)))
    assert len(ensemble.catalogue) == 31
    assert prediction(ensemble, log).item_logits.shape[1] == 31
