"""The recurrence's own account of a history: how much of its state each event lets through.

An event's gate is the product of its tokens' gates. After the event, so much of what stood in the
state before it is still there, element by element; the rest is made of ``b`` alone. A gate says
what is forgotten, whatever was there and whichever target is asked: it is no influence.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llm_influence.errors import ModelError
from llm_influence.modeling.model import InfluenceModel, inference
from llm_influence.modeling.recurrent import GatedRecurrence
from llm_influence.rendering.batch import collate
from llm_influence.types import History


def has_gates(model: InfluenceModel) -> bool:
    """Whether the model's backbone is the recurrence."""
    return isinstance(getattr(model.backbone.model, "cell", None), GatedRecurrence)


def event_gates(model: InfluenceModel, histories: Sequence[History]) -> list[Tensor]:
    """(E, H) gates of the events of each of the histories, which fit the context.

    Raises:
        ModelError: The backbone is another one than ``recurrence``.
    """
    cell = getattr(model.backbone.model, "cell", None)
    if not isinstance(cell, GatedRecurrence):
        raise ModelError(
            f"{model.backbone.source!r} has no such gates",
            where="gates, model.backbone",
            expected="backbone 'recurrence'",
            fix="train one, or ask a method of attribution",
        )
    batch = collate(model.encoder.encode(histories)).to(model.device)
    with inference(model):
        of_tokens = cell.gates(model.embed(batch).float())
        event = (batch.event_index + 1)[..., None].expand_as(of_tokens)  # 0: frame and padding
        events = of_tokens.new_ones(len(histories), batch.ends.shape[1], of_tokens.shape[-1])
        events = events.scatter_reduce(1, event, of_tokens, "prod")
    return [row[1 : 1 + len(h)].cpu() for row, h in zip(events, histories, strict=True)]
