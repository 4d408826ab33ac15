"""Exact parts of a prediction: they add up, and the words name the cause."""

import numpy as np
import pytest
import torch

from llm_influence import Explainer, InfluenceModel, Item
from llm_influence.attribution import explainer
from llm_influence.attribution.memory_parts import memory_parts
from llm_influence.attribution.renderings import Players
from llm_influence.errors import ExplanationError
from llm_influence.modeling.backbone import inference
from llm_influence.rendering.encoder import collate
from tests import tiny
from tests.modeling.test_memory import SEEN, remembering, typed


def test_parts_add_up_and_agree_with_the_probability_without_the_memory():
    model, history = remembering(), typed(*SEEN)
    found = memory_parts(model, history, "i9")
    assert [part.event.item for part in found.parts] == list(SEEN)
    assert found.language + sum(part.share for part in found.parts) == pytest.approx(1)
    memory = model.item_head.memory
    batch = collate(model.encoder.encode([history]))
    with inference(model):
        query = model.query(batch)
        assert found.probability == pytest.approx(
            float(model(batch).item_logits.softmax(dim=1)[0, 9]), rel=1e-4
        )
        mass = float(memory.scales[1] * memory.mass(query.records, query.presence))
        memory.scales[1] = 0
        alone = float(model(batch).item_logits.softmax(dim=1)[0, 9])
    assert found.language * found.probability == pytest.approx(alone / (1 + mass), rel=1e-3)


def test_the_words_name_the_event_that_causes_most():
    model = remembering()
    found = memory_parts(model, typed("i3", "i9"), "i9")
    text = str(found)
    assert "from the language model" in text
    assert "people come back to it" in text
    large = [part for part in found.parts if abs(part.log_odds) >= 0.05]
    assert text.count("log-odds by association with") == len(large)


def test_an_event_of_an_unlinked_item_has_no_share():
    model = remembering()
    links = model.item_head.memory.transitions
    links.strengths = torch.zeros_like(links.strengths)
    found = memory_parts(model, typed("i3", "i9", "i4"), "i9")
    np.testing.assert_allclose([found.parts[n].share for n in (0, 2)], 0)


def test_a_model_without_memory_is_refused():
    with pytest.raises(ExplanationError, match="no memory"):
        memory_parts(tiny.tiny_model(), typed("i3"), "i9")


@pytest.mark.parametrize(
    ("method", "players"),
    [
        ("leave_one_out", "events"),
        ("shapley", "events"),
        ("integrated_gradients", "fields"),
        ("attention_rollout", "events"),
    ],
)
def test_every_method_carries_the_exact_parts_of_histories_of_any_length(method, players):
    model, histories = remembering(), [typed(*SEEN), typed("i3", "i9")]
    explained = Explainer(model, method, players=Players(players), fidelity_masks=0)
    for history, influence in zip(histories, explained.explain(histories, Item("i9")), strict=True):
        parts = memory_parts(model, history, "i9").parts
        shares, odds = zip(*((part.share, part.log_odds) for part in parts), strict=True)
        np.testing.assert_allclose(influence.memory_shares, shares, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(influence.memory_log_odds, odds, rtol=1e-4, atol=1e-7)


def test_the_parts_cost_no_model_evaluation(monkeypatch):
    model, calls = remembering(), []
    Explainer(model).explain(typed(*SEEN), Item("i9"))  # fills what is computed once a model
    model.body.register_forward_pre_hook(lambda *_: calls.append(1))
    Explainer(model).explain(typed(*SEEN), Item("i9"))
    with_parts = len(calls)
    monkeypatch.setattr(explainer, "known_parts", lambda *_: [])
    Explainer(model).explain(typed(*SEEN), Item("i9"))
    assert with_parts > 0
    assert len(calls) == 2 * with_parts


def test_other_targets_ensembles_and_models_without_memory_have_no_parts():
    model, history = remembering(), typed(*SEEN)
    pair = InfluenceModel.ensemble([model, remembering()])
    without = tiny.tiny_model()
    for explained, target in ((model, "click"), (pair, Item("i9")), (without, Item("i9"))):
        influence = Explainer(explained, fidelity_masks=0).explain(history, target)
        assert influence.memory_shares is None
        assert influence.memory_log_odds is None


@pytest.mark.parametrize("players", ["events", "fields"])
def test_integrated_gradients_add_up_with_the_memory(players):
    exact = Explainer(remembering(), "integrated_gradients", players=Players(players))
    quality = exact.explain(typed(*SEEN), Item("i9")).quality
    assert quality.converged
    assert quality.completeness_gap <= exact.method.tolerance
