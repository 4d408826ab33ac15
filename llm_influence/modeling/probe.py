"""Does a backbone do as it is told? Asked once, before anything is trained on it."""

from __future__ import annotations

import torch

from llm_influence.errors import ModelError
from llm_influence.modeling.model import InfluenceModel, inference
from llm_influence.rendering.batch import EncodedBatch

EVENTS, TOKENS = 4, 3
FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
CLOSE = 1e-4  # of states whose size is about one; a leak moves them far more


def check_past_alone(model: InfluenceModel) -> None:
    """Refuse a backbone whose state after an event changes with the events that follow.

    Every architecture of a hub cannot be tried in advance: some mix tokens by convolution or
    Fourier transform, whatever the mask says, and a model trained on them would have seen the
    answers.

    Raises:
        ModelError: It sees the future, or cannot be run with a mask of pairs of tokens at all.
    """
    backbone, total = model.backbone, EVENTS * TOKENS
    width = backbone.input_width
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, total, width, generator=generator)
    other = vectors.clone()
    other[:, -TOKENS:] = -other[:, -TOKENS:]
    event = torch.arange(total).div(TOKENS, rounding_mode="floor")[None]
    batch = EncodedBatch(
        input_ids=torch.zeros_like(event),
        added_ids=torch.empty(1, total, 0, dtype=torch.long),
        attention_mask=torch.ones_like(event, dtype=torch.bool),
        event_index=event,
        field_index=torch.full_like(event, -1),
        ends=torch.arange(-1, total, TOKENS)[None].clamp(min=0),
        num_events=torch.tensor([EVENTS]),
        when=torch.zeros(1, dtype=torch.long),
    )
    try:
        with inference(model):
            first, second = (model.states(batch, v.to(model.device)) for v in (vectors, other))
    except FAILURES as error:
        raise _refused(model, f"cannot be run with a mask ({error})") from error
    moved = (first - second).abs()[:, :-TOKENS].max().item()
    if moved > CLOSE * max(1.0, first.abs().mean().item()):
        raise _refused(model, "lets an event's state depend on later events")


def _refused(model: InfluenceModel, found: str) -> ModelError:
    backbone = model.backbone
    return ModelError(
        f"{backbone.source!r} ({backbone.model.config.model_type}) {found}",
        where="model.backbone",
        expected="a decoder, or an encoder that takes a mask of shape (B, 1, T, T)",
        fix="choose another backbone; docs/backbones.md lists families that were tried",
    )
