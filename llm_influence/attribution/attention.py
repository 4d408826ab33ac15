"""Methods that read the attention weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ModelError
from llm_influence.modeling.adapters import Body


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
    flow = _rollout(_attention_weights(task))
    rows = torch.arange(len(flow), device=flow.device)
    at_query = flow[rows, task.batch.last()] * task.batch.attention_mask
    scores, frame = task.batch.event_sums(at_query)
    base, full = task.values.ends()
    return Attribution(
        scores=task.split(scores.cpu().double().numpy()),
        frame=frame.cpu().double().numpy(),
        base=base,
        full=full,
        passes=task.values.passes + np.int64(1),
    )


def _rollout(layers: tuple[Tensor, ...]) -> Tensor:
    """(N, T, T) how much of each token's final state comes from each input token."""
    size = layers[0].shape[-1]
    identity = torch.eye(size, device=layers[0].device)
    flow = identity.expand(len(layers[0]), -1, -1)
    for weights in layers:  # (N, heads, T, T)
        flow = (weights.mean(dim=1) + identity) / 2 @ flow
    return flow


def _attention_weights(task: Task) -> tuple[Tensor, ...]:
    """Attention weights of every layer, (N, heads, T, T)."""
    model = task.model
    with torch.no_grad(), eager_attention(model.body):
        vectors = model.embed(task.batch)
        found = model.attend(task.batch, vectors, output_attentions=True).attentions
    expected = model.backbone.model.config.num_hidden_layers
    if found is None or len(found) != expected or any(layer is None for layer in found):
        raise ModelError(
            "the backbone returned no attention weights",
            where=f"{model.backbone.source!r} ({model.backbone.model.config.model_type})",
            expected=f"weights of {expected} layers",
            fix="use a gradient or perturbation method with this backbone",
        )
    return found


@contextmanager
def eager_attention(body: Body) -> Iterator[None]:
    """Attention that keeps its weights; fused kernels never make them. Restored afterwards."""
    before = body.config._attn_implementation
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(before)
