"""What item vectors are mixed of: an item's own and those of the items that share its entities.

Vectors of units: what their words mean, moved by what training learned about each.

``vector(u) = project(words(u)) + residual(u)``. ``words`` comes from the untuned backbone and is
never trained; ``project`` is shared by all units; ``residual`` starts at zero. Where no language
model reads the words (a recurrent backbone), an item is its residual alone, begun at random. An
item added after training borrows the residuals of the items whose words are nearest. In a large
catalogue a residual is ``widen(narrow residual)`` (docs/decisions/0007-narrow-residuals.md).

With neighbours (`Embeddings.mix`) a unit's vector is a weighted sum of such vectors, its own and
theirs: items that a knowledge graph says are alike. What training learns of one is learned of the
others as well, and an item that nobody has met stands where its neighbours are.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.data.knowledge_graph import ItemFacts


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
    """Units and weights that N items are made of, for `Embeddings.mix`.

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


ROWS = 32_768
"""Units whose words are made ready at a time; affects memory alone."""
BORROWERS = 64
"""New items compared with the whole catalogue at a time; affects memory alone."""

NEIGHBOURS, SHARPNESS = 5, 0.1
"""A new item borrows from so many items, weighted by ``softmax(cosine / SHARPNESS)``. Chosen on
the validation items of scripts/benchmark_cold_items.py."""


class Embeddings(nn.Module):
    """Vectors of V units.

    Text vectors of a language model share one large direction; it is removed, so that the angle
    between two units tells them apart (Mu & Viswanath 2018, arXiv:1702.01417).

    Args:
        texts: (V, D) text vectors; (V, 0) where there are none (`begin_at_random`).
        width: Size H of the vectors made.
        scale: Length that a vector starts with; input embeddings want the backbone's own.
        rank: Numbers R of a unit's residual; default: ``width``, the residual itself. Fewer are
            widened by a shared matrix.

    Attributes:
        residual_dropout: In training, the chance that an item goes without its residual wherever
            it occurs in one call. The words' part must then do by itself, as it must for an item
            never seen (cf. DropoutNet, Volkovs et al. 2017). Nothing is rescaled: both vectors of
            an item, with its residual and without, are those that prediction uses.
        first_item: Row of the first item; the units before it are the template's words, which are
            never new and keep their residuals.
    """

    words: Tensor
    centre: Tensor
    bags: Tensor | None
    bag_weights: Tensor | None

    def __init__(
        self, texts: Tensor, width: int, *, scale: float = 1.0, rank: int | None = None
    ) -> None:
        super().__init__()
        self.residual_dropout, self.first_item, self.width = 0.0, 0, width
        rank = width if rank is None else rank
        self.register_buffer("centre", texts.mean(dim=0))
        self.register_buffer("words", _directions(texts, self.centre))
        self.register_buffer("bags", None)
        self.register_buffer("bag_weights", None)
        size = texts.shape[1]
        self.project: nn.Module = nn.Linear(size, width, bias=False) if size else _Nothing(width)
        self.residual = nn.Parameter(torch.zeros(len(texts), rank))
        self.widen: nn.Module = nn.Identity() if rank == width else _widening(rank, width)
        if isinstance(self.project, nn.Linear):
            with torch.no_grad():
                self.project.weight.copy_(torch.eye(width, size) * scale)

    def __len__(self) -> int:
        """Number of units V."""
        return len(self.words)

    @property
    def has_words(self) -> bool:
        """Whether a unit is more than its residual."""
        return self.words.shape[1] > 0

    @torch.no_grad()
    def begin_at_random(self) -> None:
        """Give every unit a residual: an item's vector has length one on average.

        Nothing else would tell items apart that have no words. The units before the items, the
        template's words, begin a hundred times shorter: what is added to an event must not drown
        its item, and a direction at zero, where a cosine has none, could not be learned.
        """
        self.residual.normal_(std=1 / math.sqrt(self.width))
        self.residual[: self.first_item] *= 0.01

    def forward(self, ids: Tensor | slice) -> Tensor:
        """(..., H) vectors of the units ``ids``."""
        residuals = self._residuals()
        if self.bags is not None:  # project and widen are linear: what they are given is mixed
            return self.project(self._mixed(self.words, ids)) + self.widen(
                self._mixed(residuals, ids)
            )
        # a lookup, as gradients of an index by threads add up in the order in which they come
        own = residuals[ids] if isinstance(ids, slice) else F.embedding(ids, residuals)
        return self.project(self.words[ids]) + self.widen(own)

    @torch.no_grad()
    def mix(self, bags: Tensor, weights: Tensor) -> None:
        """Let the vectors of the last units be weighted sums of vectors; others stay their own.

        Args:
            bags: (N, K) units that each of the last N units is made of.
            weights: (N, K) their shares; 0 for places that are not used.
        """
        before = len(self) - len(bags)
        own = torch.arange(before)[:, None].expand(-1, bags.shape[1])
        alone = torch.zeros(before, bags.shape[1])
        alone[:, 0] = 1
        self.bags = torch.cat([own.to(bags), bags]).to(self.words.device)
        self.bag_weights = torch.cat([alone.to(weights), weights]).to(self.words)

    def _mixed(self, table: Tensor, ids: Tensor | slice) -> Tensor:
        """(..., C) weighted sums of rows of a (V, C) table, gathered row by row."""
        bags, weights = cast("Tensor", self.bags)[ids], cast("Tensor", self.bag_weights)[ids]
        flat = bags.flatten(0, -2), weights.flatten(0, -2).to(table)
        sums = F.embedding_bag(flat[0], table, per_sample_weights=flat[1], mode="sum")
        return sums.unflatten(0, bags.shape[:-1])

    def learned(self, ids: Tensor) -> Tensor:
        """(..., H) sum of the residuals of the (..., A) units ``ids``, -1 for none.

        What is added to an event's token starts at nothing and is learned whole: begun from words'
        vectors instead, it drowns the item (docs/experiments.md).
        """
        known = (ids >= 0)[..., None]
        return self.widen((F.embedding(ids.clamp(min=0), self.residual) * known).sum(dim=-2))

    def _residuals(self) -> Tensor:
        """(V, R) residuals, in training without those that dropout takes."""
        if not (self.training and self.residual_dropout):
            return self.residual
        kept = torch.rand(len(self), device=self.residual.device) >= self.residual_dropout
        kept[: self.first_item] = True
        return self.residual * kept[:, None]

    def extend(
        self, texts: Tensor, bags: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Add items at the end, from their (N, D) text vectors.

        ``bags`` and ``weights`` (N, K) say what the new ones are made of, as `mix` takes them.

        What training learned beside the words is much alike for items whose words are alike, so
        a new item starts with the mean residual of its nearest known items. Without any, its
        vector is none that training has seen, and it ranks behind those (docs/training.md).
        """
        new = _directions(texts.to(self.words), self.centre)
        known, learned = self.words[self.first_item :], self.residual.detach()[self.first_item :]
        borrowed = _borrowed(new, known, learned)
        self.words = torch.cat([self.words, new])
        self.residual = nn.Parameter(torch.cat([self.residual.detach(), borrowed]))
        if self.bags is not None and self.bag_weights is not None:
            if bags is None or weights is None:  # the new ones are their own
                bags = torch.arange(len(self) - len(new), len(self))[:, None]
                weights = torch.ones(len(new), 1)
            width = max(bags.shape[1], self.bags.shape[1])
            bags = torch.cat([_widened(self.bags, width), _widened(bags.to(self.bags), width)])
            weights = torch.cat(
                [_widened(self.bag_weights, width), _widened(weights.to(self.bag_weights), width)]
            )
        if bags is not None and weights is not None:
            self.mix(bags, weights)


def _widened(table: Tensor, width: int) -> Tensor:
    """(N, width) columns of a table, with zeros behind them."""
    return F.pad(table, (0, width - table.shape[1]))


class _Nothing(nn.Module):
    """The words' part of vectors without words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, words: Tensor) -> Tensor:
        """(..., width) zeros from (..., 0)."""
        return words.new_zeros(*words.shape[:-1], self.width)


def _borrowed(new: Tensor, known: Tensor, learned: Tensor) -> Tensor:
    """(N, R) residuals for (N, D) new words from the (I, R) of (I, D) known ones."""
    found = learned.new_zeros(len(new), learned.shape[1])
    if not len(known):
        return found
    for start in range(0, len(new), BORROWERS):
        rows = slice(start, start + BORROWERS)
        cosines, nearest = (new[rows] @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        weights = (cosines / SHARPNESS).softmax(dim=1)
        found[rows] = (weights[..., None] * learned[nearest]).sum(dim=1)
    return found


def _directions(texts: Tensor, centre: Tensor) -> Tensor:
    """(V, D) unit vectors from ``centre`` to each of the (V, D) texts."""
    found = torch.empty_like(texts)
    for start in range(0, len(texts), ROWS):
        rows = slice(start, start + ROWS)
        found[rows] = F.normalize(texts[rows] - centre, dim=-1)
    return found


def _widening(rank: int, width: int) -> nn.Linear:
    """Orthogonal columns, so long that a step of AdamW moves a vector as far as without them."""
    widen = nn.Linear(rank, width, bias=False)
    nn.init.orthogonal_(widen.weight, gain=math.sqrt(width / rank))
    return widen
