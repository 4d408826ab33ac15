"""From the state after an event to scores of what comes next."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.config import ItemHeadConfig
from llm_influence.modeling.repeats import Repeats
from llm_influence.rendering.gaps import GAP_EDGES


class ItemHead(nn.Module):
    """Logits of the next item: the projected state against every item vector.

    ``cosine`` divides the cosine by a learned temperature; ``dot`` takes the plain product. The
    projection starts as the identity, so that before training a state scores items by meaning.
    With ``repeats`` the logits of items that were seen grow by how often they were.
    """

    def __init__(self, width: int, config: ItemHeadConfig, repeats: Repeats | None = None) -> None:
        super().__init__()
        self.score, self.width, self.repeats = config.score, width, repeats
        self.project = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, states: Tensor, items: Tensor) -> Tensor:
        """(..., I) logits from (..., H) states and (I, H) item vectors.

        If something stands behind the states, it is what was seen (`InfluenceModel.remember`), and
        the items must be the whole catalogue: counts are added to chances.
        """
        states, behind = states[..., : self.width], states[..., self.width :]
        projected = self.project(states)
        if self.score == "dot":
            logits = projected @ items.T
        else:
            projected, items = F.normalize(projected, dim=-1), F.normalize(items, dim=-1)
            logits = self.log_scale.exp() * (projected @ items.T)
        if self.repeats is None or not behind.shape[-1]:
            return logits
        found: Tensor = self.repeats(logits, states, behind[..., : 2 * self.repeats.slots])
        return found

    def pairs(self, states: Tensor, items: Tensor) -> Tensor:
        """(...) logits of (..., H) states, each with its own one of the (..., H) item vectors."""
        states = self.project(states)
        if self.score == "dot":
            return (states * items).sum(dim=-1)
        return self.log_scale.exp() * F.cosine_similarity(states, items, dim=-1)


class BehaviorHead(nn.Linear):
    """(..., behaviours) logits of the next behaviour."""

    def forward(self, states: Tensor) -> Tensor:
        """See the class; what stands behind the (..., H) states is not read."""
        return super().forward(states[..., : self.in_features])


class WhenEmbedding(nn.Embedding):
    """(..., H) what the gap from the last event to the question adds to the state of every head.

    It starts at zero, and code 0 (no event, or nobody knows when) is a code like the others.
    """

    def __init__(self, width: int) -> None:
        super().__init__(len(GAP_EDGES) + 1, width)
        nn.init.zeros_(self.weight)
