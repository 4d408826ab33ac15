"""What item vectors are mixed of: an item's own and those of the items that share its entities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llm_influence.data.item_facts import ItemFacts


def item_bags(
    facts: ItemFacts,
    ids: pa.StringArray,
    *,
    count: int,
    share: float,
    first: int,
    first_item: int,
    known: pa.StringArray | None = None,
) -> tuple[Tensor, Tensor]:
    """Units and weights that N items are made of, for `UnitVectors.mix`.

    Args:
        facts: What is known of items.
        ids: (N,) the items; they are the units from ``first`` on.
        count: Neighbours of an item.
        share: Of them in its vector.
        first: Unit of the first of them.
        first_item: Unit of the catalogue's first item.
        known: (I,) the catalogue's items that neighbours are sought among; default: ``ids``. New
            items are made of old ones alone, and old ones never of new ones.

    Returns:
        (N, 1 + K) units, the item itself first, and (N, 1 + K) weights: ``1 - share`` for itself
        and ``share`` divided among its neighbours. An item without any is itself.
    """
    near = facts.neighbours(ids, count, among=known)
    itself = np.arange(first, first + len(ids))[:, None]
    units = np.where(near.codes >= 0, near.codes + first_item, itself)
    theirs = share * near.weights
    bags = np.concatenate([itself, units], axis=1)
    weights = np.concatenate([1 - theirs.sum(axis=1, keepdims=True), theirs], axis=1)
    return torch.from_numpy(bags), torch.from_numpy(weights.astype(np.float32))
