"""The adapter on against the adapter off."""

import copy

import numpy as np
import pytest
import torch

from llm_influence.attribution.adapter_effect import adapter_effect
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Item
from llm_influence.errors import ExplanationError
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


def tuned_model(kind, log, noise=0.3):
    """A model whose adapter is away from its start, where it does nothing."""
    config = tiny.run_config(model={"adapter": {"kind": kind}})
    model = InfluenceModel.build(config, log).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.body.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or ".up." in name):
                parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("method", ["leave_one_out", "integrated_gradients"])
def test_without_the_adapter_is_a_model_whose_adapter_does_nothing(log, kind, method):
    model = tuned_model(kind, log)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    histories = [log.at(0), log.at(5), log.at(3)]
    effects = adapter_effect(Explainer(model, method, batch_size=2), histories)
    idle = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in idle.body.named_parameters():
            if "lora_B" in name or ".up." in name:
                parameter.zero_()
    for history, effect in zip(histories, effects, strict=True):
        best = Item(model.recommend(history, 1)[0].item)
        for found, expected in (
            (effect.tuned, Explainer(model, method).explain(history, best)),
            (effect.untuned, Explainer(idle, method).explain(history, best)),
        ):
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
            assert found.full_value == pytest.approx(expected.full_value, abs=1e-4)
            assert found.target_id == best.id
        np.testing.assert_array_equal(
            effect.difference, effect.tuned.scores - effect.untuned.scores
        )
        assert np.abs(effect.difference).max() > 1e-3
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    one = adapter_effect(Explainer(model, method), histories[1])
    np.testing.assert_allclose(one.difference, effects[1].difference, atol=1e-4)


@pytest.mark.parametrize(("kind", "said"), [("full", "no untuned"), ("frozen", "nothing inside")])
def test_a_model_without_an_adapter_to_switch_off_is_refused(log, kind, said):
    config = tiny.run_config(model={"adapter": {"kind": kind}})
    explainer = Explainer(InfluenceModel.build(config, log))
    with pytest.raises(ExplanationError, match=f"'{kind}': .*{said}"):
        adapter_effect(explainer, log.at(0))
