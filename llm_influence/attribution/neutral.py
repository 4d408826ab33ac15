"""Vectors of a token that says nothing in particular: the mean of what stands in its place."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.pieces import UnitPieces
from llm_influence.rendering.template import FIELDS


@torch.no_grad()
def mean_vectors(model: InfluenceModel) -> Tensor:
    """(fields + 1, H) average input vector of each field; the last row is that of all of them."""
    pieces = model.encoder.pieces
    if not isinstance(pieces, UnitPieces):
        words = model.body.get_input_embeddings().weight
        return words.mean(dim=0).expand(len(FIELDS) + 1, -1)
    vectors = model.units(slice(None))
    field = torch.from_numpy(pieces.fields).to(vectors.device)
    rows = [vectors[field == number] for number in range(len(FIELDS))]
    means = [row.mean(dim=0) if len(row) else vectors.mean(dim=0) for row in rows]
    return torch.stack([*means, vectors.mean(dim=0)])
