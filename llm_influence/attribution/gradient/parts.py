"""What of the input vectors moved, and which event or field it belongs to.

A token of a template belongs to one event and one field. Where a template adds fields to an
event's token (template ``fused``), the token's vector is a sum of one part a field, and the part of
a score that belongs to a field is that part's own movement times the gradient. Parts add up to
tokens, tokens to events, so the scores of an event's fields add up to the score of the event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.task import Task
from llm_influence.rendering.template import FIELDS
from llm_influence.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """How far each part of each token moved.

    Attributes:
        moved: (N, T, C, H) the movement of C parts; they add up to the token's.
        fields: (N, T, C) the field of each part, -1 for none.
    """

    moved: Tensor
    fields: Tensor

    def times(self, rows: Tensor, gradients: Tensor) -> Tensor:
        """(M, T, C) movement times gradient.

        Args:
            rows: (M,) history of each of the gradients.
            gradients: (M, T, H).
        """
        return torch.einsum("mtch,mth->mtc", self.moved[rows], gradients)


def whole_tokens(task: Task, moved: Tensor) -> Parts:
    """Every token is one part, of its own field; ``moved`` is (N, T, H)."""
    return Parts(moved[:, :, None], task.batch.field_index[..., None])


def split_tokens(task: Task, moved: Tensor) -> Parts:
    """Tokens in their own part and the parts that the template adds to them.

    The added parts move from nothing to what they are, the token's own part moves the rest.
    """
    added = task.batch.added_ids  # (N, T, A)
    if not added.shape[-1] or task.model.encoder.style != "token":
        return whole_tokens(task, moved)
    with torch.no_grad():
        each = task.model.units.learned(added[..., None])  # (N, T, A, H)
    own = moved - each.sum(dim=2)
    numbers = torch.tensor([FIELDS.index(name) for name in task.model.encoder.template.added])
    fields = torch.where(added >= 0, numbers.to(added.device), -1)
    return Parts(
        torch.cat([own[:, :, None], each], dim=2),
        torch.cat([task.batch.field_index[..., None], fields], dim=2),
    )


def event_scores(task: Task, scores: FloatArray) -> tuple[list[FloatArray], FloatArray]:
    """N arrays (E,) of events and (N,) of frames, summed over (N, T, C) scores of parts."""
    tokens = torch.from_numpy(scores.sum(axis=-1))
    events, frame = task.batch.to(tokens.device).event_sums(tokens)
    return task.split(events.numpy()), frame.numpy()


def field_scores(task: Task, parts: Parts, scores: FloatArray) -> list[FloatArray]:
    """N arrays (E, fields + 1) of the fields of events, in the order of `FIELDS`.

    The last column holds what belongs to no field: the template's own words. Rows add up to the
    scores of events.

    Args:
        task: What is explained.
        parts: The parts that the scores are of.
        scores: (N, T, C).
    """
    fields = parts.fields.cpu().numpy()
    found = [
        event_scores(task, np.where(fields == number, scores, 0.0))[0]
        for number in [*range(len(FIELDS)), -1]
    ]
    return [np.stack(columns, axis=1) for columns in zip(*found, strict=True)]
