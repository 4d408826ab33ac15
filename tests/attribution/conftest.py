"""Models that the tests of this room share."""

import pytest

from llm_influence.modeling.model import InfluenceModel
from tests import tiny


@pytest.fixture(scope="session")
def bert():
    """One encoder over the full template, for what does not depend on family and style."""
    return tiny.tiny_model("bert", "token")


@pytest.fixture(autouse=True)
def the_backbone_serves_the_method(request):
    """ModernBERT feels no length: what needs one is refused (test_gradient holds that)."""
    given = getattr(request.node, "callspec", None)
    chosen = given.params if given else {}
    family = chosen.get("model") or [chosen.get("last_event_alone")]
    zero = "zero" in {chosen.get("baseline"), chosen.get("options", {}).get("baseline")}
    needs_length = chosen.get("method") in {"input_x_gradient", "smoothgrad"} or zero
    if family[0] == "modernbert" and needs_length:
        pytest.skip("ModernBERT normalises its input vectors")


@pytest.fixture(params=tiny.BACKBONES)
def last_event_alone(request, log):
    """A real model whose answer depends on the last event and on no other.

    Its attention adds nothing and it has no positions, so a state is a function of its own token.
    """
    sections = {"rendering": {"template": "item"}, "model": {"adapter": {"kind": "frozen"}}}
    model = InfluenceModel.build(tiny.run_config(request.param, **sections), log).eval()
    attention = ("attention.output.dense", "o_proj", "attn.c_proj", "attn.Wo")
    zeroed = (*attention, "position_embeddings", "wpe")
    for name, parameter in model.body.named_parameters():
        if any(part in name for part in zeroed):
            parameter.data.zero_()
    return model
