"""What item vectors are mixed of: an item's own and those of the items that share its entities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llm_influence.config import NeighborsConfig
from llm_influence.data.item_facts import ItemFacts


def item_bags(
    facts: ItemFacts,
    config: NeighborsConfig,
    ids: pa.StringArray,
    *,
    first: int,
    first_item: int,
    known: pa.StringArray | None = None,
) -> tuple[Tensor, Tensor]:
    """Units and weights that N items are made of, for `UnitVectors.mix`.

    Args:
        facts: What is known of items.
        config: How many neighbours, and their share.
        ids: (N,) the items; they are the units from ``first`` on.
        first: Unit of the first of them.
        first_item: Unit of the catalogue's first item.
        known: (I,) the catalogue's items that neighbours are sought among; default: ``ids``. New
            items are made of old ones alone, and old ones never of new ones.

    Returns:
        (N, 1 + K) units, the item itself first, and (N, 1 + K) weights: ``1 - share`` for itself
        and ``share`` divided among its neighbours. An item without any is itself.
    """
    near = facts.neighbours(ids, config.count, among=known)
    itself = np.arange(first, first + len(ids))[:, None]
    units = np.where(near.codes >= 0, near.codes + first_item, itself)
    theirs = config.share * near.weights
    bags = np.concatenate([itself, units], axis=1)
    weights = np.concatenate([1 - theirs.sum(axis=1, keepdims=True), theirs], axis=1)
    return torch.from_numpy(bags), torch.from_numpy(weights.astype(np.float32))


def all_bags(
    facts: ItemFacts, config: NeighborsConfig, ids: pa.StringArray, *, first_item: int
) -> tuple[Tensor, Tensor]:
    """`item_bags` of a whole catalogue, behind the units before it, which are themselves."""
    items, shares = item_bags(facts, config, ids, first=first_item, first_item=first_item)
    before = torch.arange(first_item)[:, None].expand(-1, items.shape[1])
    own = torch.zeros(first_item, items.shape[1])
    own[:, 0] = 1
    return torch.cat([before, items]), torch.cat([own, shares])
