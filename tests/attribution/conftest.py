"""Models that the tests of this room share."""

import pytest

from llm_influence.config import RECURRENT
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


@pytest.fixture(scope="session")
def bert():
    """One encoder over the full template, for what does not depend on family and style."""
    return tiny.tiny_model("bert", "token")


@pytest.fixture(scope="session")
def recurrence():
    """A gated recurrence over the full template."""
    return tiny.tiny_model("recurrence", "token")


@pytest.fixture(autouse=True)
def the_backbone_serves_the_method(request):
    """What a backbone cannot give is refused (test_gradient and test_explainer hold that).

    ModernBERT feels no length; a recurrent backbone neither attends nor, in style token, reads.
    """
    given = getattr(request.node, "callspec", None)
    chosen = given.params if given else {}
    alone = [chosen.get("last_event_alone"), None]
    family = chosen.get("model") or chosen.get("any_model") or alone
    zero = "zero" in {chosen.get("baseline"), chosen.get("options", {}).get("baseline")}
    needs_length = chosen.get("method") in {"input_x_gradient", "smoothgrad"} or zero
    if family[0] == "modernbert" and needs_length:
        pytest.skip("ModernBERT normalises its input vectors")
    method = str(chosen.get("method"))
    unread = method == "item_similarity" and family[1] == "token"
    if family[0] in RECURRENT and (method.startswith("attention") or unread):
        pytest.skip("a recurrent backbone has no attention, and texts only where it is given words")


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
