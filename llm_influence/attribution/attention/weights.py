"""What the methods of this family share: the weights, and tokens' relevances as events' shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ModelError
from llm_influence.modeling.adapters import Body
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import FloatArray

WEIGHTS = 2**25
"""Attention weights held at a time; affects speed and memory alone."""


def event_values(
    task: Task, read: Callable[[EncodedBatch, Tensor], tuple[Tensor, Tensor]]
) -> tuple[list[FloatArray], FloatArray]:
    """What ``read`` finds in the attention of N histories, read a part of them at a time.

    Args:
        task: What is explained.
        read: From a batch of B histories and their (B,) numbers within the task to (B, E) values
            of events, 0 beyond a history's events, and (B,) values of the frame.

    Returns:
        N arrays (E,), and (N,).
    """
    config, tokens = task.model.backbone.model.config, task.batch.input_ids.shape[1]
    held = config.num_hidden_layers * config.num_attention_heads * tokens**2
    scores: list[FloatArray] = []
    frames: list[FloatArray] = []
    for rows in torch.arange(len(task.histories)).split(max(1, WEIGHTS // held)):
        events, frame = read(task.batch.take(rows.to(task.model.device)), rows)
        found = events.double().cpu().numpy()
        scores += [line[: task.sizes[row]] for row, line in zip(rows.tolist(), found, strict=True)]
        frames.append(frame.double().cpu().numpy())
    return scores, np.concatenate(frames)


def shares(
    task: Task,
    read: Callable[[EncodedBatch, Tensor], tuple[Tensor, Tensor]],
    *,
    passes: int = 1,
) -> Attribution:
    """`event_values` that are never negative, divided by their total, frame included.

    Where nothing is relevant at all (every value 0) the scores are 0 and add up to 0.

    Args:
        task: What is explained.
        read: See `event_values`.
        passes: Passes that ``read`` takes; two more are for the completeness gap.
    """
    events, frame = event_values(task, read)
    totals = np.array([row.sum() for row in events]) + frame
    totals[totals == 0] = 1.0
    base, full = task.values.ends()
    return Attribution(
        scores=[row / total for row, total in zip(events, totals, strict=True)],
        frame=frame / totals,
        base=base,
        full=full,
        passes=task.values.passes + np.int64(passes),
    )


def at_query(batch: EncodedBatch, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """(B, E) and (B,) sums over the tokens of each event and of the frame, at the query.

    Args:
        batch: B histories.
        relevance: (B, T, T) how relevant each token (last axis) is to each other.
    """
    rows = torch.arange(len(relevance), device=relevance.device)
    return batch.event_sums(relevance[rows, batch.last()] * batch.attention_mask)


def attention_weights(model: InfluenceModel, batch: EncodedBatch) -> tuple[Tensor, ...]:
    """Attention weights of every layer, (B, heads, T, T), without gradients.

    Raises:
        ModelError: The backbone gives none.
    """
    with torch.no_grad(), eager_attention(model.body):
        found = model.attend(batch, model.embed(batch), output_attentions=True).attentions
    return checked(model, found)


def checked(model: InfluenceModel, found: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """``found`` if it holds the weights of every layer.

    Raises:
        ModelError: It does not.
    """
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
