"""Items that a training step learns to tell the right ones from, where it cannot take them all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_influence.config import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.types import FloatArray, IntArray


class Negatives:
    """One set of items for each optimiser step, shared by all of its positions.

    Every item has its own coin: it is in the set with its probability of inclusion
    ``min(1, negatives x proposal)``. So no item is drawn twice, that probability is exact, and
    the set depends on the seed and the step alone: it is the same in every process and
    micro-batch. Where all probabilities are one, the set is the catalogue.

    Args:
        proposal: (I,) positive weights, normalised here.
        negatives: Size of the set, on average (less where a popular item's probability is cut).
        seed: Of the run.

    Attributes:
        inclusion: (I,) float32 probability that an item is in a step's set.
    """

    def __init__(self, proposal: FloatArray, negatives: int, *, seed: int = 0) -> None:
        self._chances = np.minimum(1.0, negatives * (proposal / proposal.sum()))
        self._seed = seed
        self.inclusion = torch.from_numpy(self._chances.astype(np.float32))

    def draw(self, step: int) -> Tensor:
        """(K,) codes of the items of one optimiser step, in order."""
        coins = np.random.default_rng([self._seed, step]).random(len(self._chances))
        return torch.from_numpy(np.flatnonzero(coins < self._chances))


def half_popular(items: IntArray, num_items: int) -> FloatArray:
    """(I,) weights: half of a set by popularity among the (N,) items of training, half evenly.

    The popular half holds the items that are hard to tell apart, the other half reaches those
    that no one has met, whose scores nothing else would keep down.
    """
    counts = np.bincount(items, minlength=num_items)
    return 0.5 * counts / max(1, counts.sum()) + 0.5 / num_items


def drawn_items(config: RunConfig, catalogue: Catalogue, log: BehaviorLog) -> Negatives | None:
    """What a loss that draws draws from: gBCE is about even draws, see docs/large_catalogues.md."""
    head, items = config.model.item_head, len(catalogue)
    loss = head.loss_for(items)
    if loss == "full":
        return None
    even = np.full(items, 1 / items)
    proposal = even if loss == "gbce" else half_popular(log.items, items)
    return Negatives(proposal, head.negatives, seed=config.train.seed)
