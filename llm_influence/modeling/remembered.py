"""What heads that count are told: put behind the states of the questions.

Between the backbone and the heads there is one tensor, (..., Q): the H numbers of a state, then
what `repeats` and `totals` read off the tokens up to there. A token counts by how much of it is
there: not at all where it is hidden, belongs to the frame or bears a mean in the place of its word;
in part along a path that leads to it; else once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm_influence.modeling.repeats import NEVER
from llm_influence.rendering.batch import EncodedBatch

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel


def remembered(
    model: InfluenceModel,
    states: Tensor,
    batch: EncodedBatch,
    places: Tensor,
    vectors: Tensor | None,
    counted: Tensor | None,
) -> Tensor:
    """(B, L, Q) states and what was counted by then; see `InfluenceModel.remember`."""
    own = model.embed(batch)
    there = batch.attention_mask & (batch.event_index >= 0)
    there = there if counted is None else there & counted
    presence = there.float()
    if vectors is not None:
        presence = presence * _share(vectors, own.detach())
    parts = [states]
    if (repeats := model.item_head.repeats) is not None:
        codes = batch.input_ids - model.first_item
        items = torch.where(there & (codes >= 0), codes, NEVER)
        read = own if vectors is None else vectors
        parts.append(repeats.seen(batch, places, items, read, presence))
    if model.totals is not None:
        parts.append(model.totals(batch, places, presence))
    return torch.cat(parts, dim=-1)


def _share(vectors: Tensor, own: Tensor) -> Tensor:
    """(B, T) how much of each token's (B, T, H) own vector is in another one, from 0 on."""
    share = (vectors * own).sum(dim=-1) / own.square().sum(dim=-1).clamp(min=1e-12)
    return share.clamp(min=0)
