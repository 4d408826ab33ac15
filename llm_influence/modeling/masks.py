"""Who may attend to whom."""

from __future__ import annotations

from typing import Any

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


def encoder_masks(
    batch: EncodedBatch,
    config: Any,  # noqa: ANN401
    dtype: torch.dtype,
    queries: int,
) -> Tensor | dict[str, Tensor]:
    """The event-causal mask in the form that an encoder takes it.

    An encoder uses a ready mask as it is, so everything that it would have done itself is done
    here. Where some layers see a window of neighbours alone (ModernBERT), the window is cut into
    their mask, and the encoder gets one mask for each type of layer. Eager attention adds its
    mask to the scores, so it gets numbers instead of bool (DeBERTa reads bool alone).

    Args:
        batch: What is read, T tokens.
        config: The backbone's configuration.
        dtype: Of the vectors that are read.
        queries: Number Q of tokens, the last ones, that states are wanted of.

    Returns:
        (B, 1, Q, T), or such a mask for each layer type.
    """
    mask = event_causal_mask(batch)[:, :, -queries:]
    places = torch.arange(mask.shape[-1], device=mask.device)
    distance = (places[-queries:, None] - places).abs()
    return mask_as_taken(mask, distance, config, dtype)


def mask_as_taken(
    mask: Tensor,
    distance: Tensor,
    config: Any,  # noqa: ANN401
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """A mask of pairs of tokens in the form that the backbone takes it.

    Args:
        mask: (B, 1, Q, T) bool, True where row may attend to column.
        distance: (B, 1, Q, T), or what broadcasts to it: places between the two tokens.
        config: The backbone's configuration.
        dtype: Of the vectors that are read.

    Returns:
        (B, 1, Q, T), or such a mask for each layer type.
    """
    masks = {"full_attention": mask}
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        masks["sliding_attention"] = mask & (distance <= config.sliding_window)
    adds = config._attn_implementation == "eager" and config.model_type != "deberta-v2"
    if adds:
        lowest = torch.finfo(dtype).min
        masks = {
            name: torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, lowest)
            for name, seen in masks.items()
        }
    return masks if len(masks) > 1 else masks["full_attention"]
