"""Who may attend to whom."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_influence.rendering.batch import EncodedBatch


def event_causal_mask(batch: EncodedBatch) -> Tensor:
    """Let every token see visible tokens of its own and of earlier events, frame included.

    With it an encoder's state at an event's last token is the same whether later events exist or
    not, so one pass predicts after every event. Every token also sees itself, so that no row of
    the softmax is empty at padding.

    Returns:
        (B, 1, T, T) bool, True where row may attend to column.
    """
    event = batch.event_index
    allowed = batch.attention_mask[:, None, :] & (event[:, None, :] <= event[:, :, None])
    itself = torch.eye(event.shape[1], dtype=torch.bool, device=event.device)
    return (allowed | itself)[:, None]
