"""Attention rollout: the product of the attention of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_influence.attribution.attention.weights import at_query, attention_weights, shares
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.rendering.batch import EncodedBatch


@register(
    name="attention_rollout",
    family="attention",
    units="share",
    removals=(),
    cost="1 forward pass with attention weights, and 2 for the completeness gap",
    estimates="how much attention flows from an event to the prediction, through all layers",
    equation="R_l = (mean over heads of A_l + I) / 2 . R_(l-1); a_i = last row, tokens of i",
    paper="Abnar & Zuidema 2020, arXiv:2005.00928",
    caution="Never negative and blind to what is done with the attention: no evidence of support.",
)
def attention_rollout(task: Task) -> Attribution:
    """Product over layers of ``(A + I) / 2``, averaged over heads, read at the last token.

    Shares of events and frame add up to 1.
    """

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        layers = attention_weights(task.model, batch)
        return at_query(batch, rolled_out([weights.mean(dim=1) for weights in layers]))

    return shares(task, read)


def rolled_out(layers: Sequence[Tensor]) -> Tensor:
    """(B, T, T) how much of each token's final state comes from each input token.

    Args:
        layers: (B, T, T) of each layer, how much each token takes from each other; rows add up
            to 1. Half of a state is counted as passed by, half as taken.
    """
    identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
    flow = identity.expand(len(layers[0]), -1, -1)
    for weights in layers:
        flow = (weights + identity) / 2 @ flow
    return flow
