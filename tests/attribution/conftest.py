"""Models that the tests of this room share."""

import pytest

from llm_influence.attribution.methods import METHODS
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
    """What the registry says that a backbone cannot be explained by is skipped, and refused
    (test_gradient and test_contract hold that).
    """
    given = getattr(request.node, "callspec", None)
    chosen = given.params if given else {}
    models = [
        name for name in ("model", "any_model", "last_event_alone") if name in request.fixturenames
    ]
    baseline = {"baseline": chosen["baseline"]} if "baseline" in chosen else {}
    method = chosen.get("method", "integrated_gradients" if baseline else None)
    if method in METHODS and models:
        backbone = request.getfixturevalue(models[0]).backbone
        if not METHODS[method].serves(backbone, {**chosen.get("options", {}), **baseline}):
            pytest.skip(f"{backbone.model.config.model_type} is refused by {method}")
        if method == "item_similarity" and not request.getfixturevalue(models[0]).units.has_words:
            pytest.skip("items without words are alike to nothing")


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
