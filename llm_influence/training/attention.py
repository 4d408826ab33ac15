"""Attention of a bf16 run on a CPU, in float32: there it is the faster one, and the more exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_in_float32"


def attend_in_float32(model: PreTrainedModel) -> None:
    """Let a backbone with fused attention compute that, and that alone, in float32.

    PyTorch's fused attention takes about three times as long in bf16 as in float32 on a CPU with
    bf16 instructions (51 tokens, forward and backward), and as long on 512 tokens. Autocast would
    choose bf16. Backbones whose attention is not the fused one are left as they are.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, sdpa_in_float32)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attend_as_usual(model: PreTrainedModel) -> None:
    """Undo `attend_in_float32`."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


def sdpa_in_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Fused attention outside autocast; what comes back has the type that came in."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        states, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return states.to(query.dtype), weights
