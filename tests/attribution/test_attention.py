"""Attention rollout."""

import numpy as np
import pytest
import torch

from llm_influence.attribution.attention import eager_attention
from llm_influence.attribution.explainer import Explainer
from llm_influence.errors import ModelError
from llm_influence.rendering.batch import collate


def test_rollout_equals_the_product_written_out(model, log):
    history = model.encoder.trim(log.at(7))
    batch = collate(model.encoder.encode([history]))
    with torch.no_grad(), eager_attention(model.body):
        vectors = model.embed(batch)
        layers = model.attend(batch, vectors, output_attentions=True).attentions
    flow = np.eye(batch.input_ids.shape[1])
    for layer in layers:
        mean = layer[0].double().numpy().mean(0)
        flow = (0.5 * mean + 0.5 * np.eye(len(mean))) @ flow
    tokens, owner = flow[-1], batch.event_index[0].numpy()
    influence = Explainer(model, "attention_rollout").explain(history)
    expected = [tokens[owner == event].sum() for event in range(len(history))]
    np.testing.assert_allclose(influence.scores, expected, atol=1e-5)
    assert influence.frame_score == pytest.approx(tokens[owner == -1].sum(), abs=1e-5)
    assert model.body.config._attn_implementation == "sdpa"


def test_a_backbone_without_attention_weights_is_named(bert, log, monkeypatch):
    attend = bert.attend

    def silent(batch, vectors, **options):
        found = attend(batch, vectors, **options)
        found.attentions = None
        return found

    monkeypatch.setattr(bert, "attend", silent)
    with pytest.raises(ModelError, match=r"no attention weights.*weights of 2 layers"):
        Explainer(bert, "attention_rollout").explain(log.at(0), "i7")
    assert bert.body.config._attn_implementation == "sdpa"
