"""A model whose influence is known without explaining it."""

from types import SimpleNamespace

import torch
from torch import Tensor

from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import Event, History
from tests import tiny


class BagModel(InfluenceModel):
    """The state is the sum of the visible tokens' vectors, so logits are linear in the events."""

    def attend(self, batch: EncodedBatch, vectors: Tensor, **options: object) -> SimpleNamespace:
        visible = vectors * batch.attention_mask[..., None]
        return SimpleNamespace(last_hidden_state=visible.cumsum(dim=1))


def bag_model(template: str = "item") -> BagModel:
    config = tiny.run_config(
        rendering={"template": template}, model={"item_head": {"score": "dot"}}
    )
    model = BagModel.build(config, tiny.small_log())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (model.units.residual, model.item_head.project.weight):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def weights(model: BagModel, history: History, chosen: str, other: str) -> list[float]:
    """What each event of a one-token-an-event history adds to ``logit(chosen) - logit(other)``."""
    with torch.no_grad():
        items = model.item_vectors()
        a, b = model.catalogue.index([chosen, other])
        direction = (items[a] - items[b]) @ model.item_head.project.weight
        codes = torch.from_numpy(model.encoder.lexicon.item_codes(history)).long()
        return (items[codes] @ direction).tolist()


def typed(*items: str, step: int = 3600) -> History:
    return History.from_events(
        "typed", [Event(item, "click", n * step) for n, item in enumerate(items)]
    )
