"""What of the input vectors moved, and whose scores it belongs to.

A token of a template belongs to one event and one field. Where a template adds fields to an
event's token (template ``fused``), the token's vector is a sum of one part a field. The target is
then a function of the parts through their sum, so its gradient with respect to each part is the
gradient with respect to the token, and what belongs to a field is that part's own movement times
it. Parts add up to tokens, tokens to events: the scores of an event's fields add up to the score
of the event.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.task import Task
from llm_influence.types import FloatArray


def moved_parts(task: Task, moved: Tensor, added_before: Tensor | None = None) -> Tensor:
    """The movement of each token in parts that belong to one player each.

    Args:
        task: What is explained.
        moved: (N, T, H) how far each token moved.
        added_before: (N, T, A) units that were added to each token where the path began; default:
            none, so that an added part moves from nothing to what it is.

    Returns:
        (N, T, C, H) parts that add up to ``moved``: the whole token, or, where fields are the
        players and the template adds some, its own part and then each added one.
    """
    added = task.batch.added_ids
    if task.players.kind == "events" or not added.shape[-1]:
        return moved[:, :, None]
    with torch.no_grad():
        each = task.model.units.learned(added[..., None])  # (N, T, A, H)
        if added_before is not None:
            each = each - task.model.units.learned(added_before[..., None])
    own = moved - each.sum(dim=2)
    return torch.cat([own[:, :, None], each], dim=2)


def times(moved: Tensor, rows: Tensor, gradients: Tensor) -> Tensor:
    """(M, T, C) movement times gradient.

    Args:
        moved: (N, T, C, H) of `moved_parts`.
        rows: (M,) history of each of the gradients.
        gradients: (M, T, H).
    """
    return torch.einsum("mtch,mth->mtc", moved[rows], gradients)


def player_scores(task: Task, scores: FloatArray) -> tuple[list[FloatArray], FloatArray]:
    """N arrays (P,) of players and (N,) of frames, summed over (N, T, C) scores of parts."""
    batch, players = task.batch.to(torch.device("cpu")), task.players
    own, added = players.owners(
        batch.event_index.numpy(), batch.field_index.numpy(), task.model.encoder
    )
    owner = np.concatenate([own[..., None], added], axis=-1)[..., : scores.shape[-1]]
    size, width = len(scores), max(task.sizes) + 1  # column 0 collects the frame
    places = np.arange(size)[:, None, None] * width + owner + 1
    found = np.bincount(places.ravel(), scores.ravel(), size * width)
    sums: FloatArray = found.astype(np.float64).reshape(size, width)
    return task.split(sums[:, 1:]), sums[:, 0]
