"""Models whose true influences are known."""

import pytest
import torch

from llm_influence.modeling.model import InfluenceModel, Prediction
from tests import tiny


@pytest.fixture(scope="session")
def bert():
    """One encoder over the full template, for what does not depend on family and style."""
    return tiny.tiny_model("bert", "token")


@pytest.fixture
def linear(log, monkeypatch):
    """A model whose logit of i0 is the sum of ``x . direction`` over visible tokens x, others 0.

    One token an event, so that the sum is additive over events with either removal.
    """
    config = tiny.run_config("bert", "token", rendering={"template": "item"})
    model = InfluenceModel.build(config, log).eval()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))

    def forward(batch, vectors=None):
        vectors = model.embed(batch.input_ids) if vectors is None else vectors
        total = ((vectors @ direction) * batch.attention_mask).sum(1)
        logits = torch.zeros(len(total), len(model.catalogue))
        column = torch.arange(len(model.catalogue)) == 0
        return Prediction(torch.where(column, total[:, None], logits), torch.zeros(len(total), 3))

    monkeypatch.setattr(model, "forward", forward)
    model.direction = direction
    return model


@pytest.fixture(params=tiny.BACKBONES)
def last_event_alone(request, log):
    """A real model whose answer depends on the last event and on no other.

    Its attention adds nothing and it has no positions, so a state is a function of its own token.
    """
    sections = {"rendering": {"template": "item"}, "model": {"adapter": {"kind": "frozen"}}}
    model = InfluenceModel.build(tiny.run_config(request.param, **sections), log).eval()
    zeroed = ("attention.output.dense", "o_proj", "attn.c_proj", "position_embeddings", "wpe")
    for name, parameter in model.body.named_parameters():
        if any(part in name for part in zeroed):
            parameter.data.zero_()
    return model
