"""Links between items, and the known items that are nearest to a new one by text."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import block_array, csr_array, diags_array
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.rendering.encoder import NO_ITEM

NEAREST = 10
"""Known items that give a new item its links."""


class ItemLinks(nn.Module):
    """A sparse (I, I) matrix: row j holds the items that item j leads to, with their strengths."""

    starts: Tensor
    codes: Tensor
    strengths: Tensor

    def __init__(self, items: int, links: int) -> None:
        super().__init__()
        self.register_buffer("starts", torch.zeros(items + 1, dtype=torch.int64))
        self.register_buffer("codes", torch.zeros(links, dtype=torch.int32))
        self.register_buffer("strengths", torch.zeros(links))

    @classmethod
    def of(cls, matrix: csr_array) -> ItemLinks:
        """The links of a (I, I) scipy matrix."""
        links = cls(matrix.shape[0], matrix.nnz)
        links.starts.copy_(torch.from_numpy(matrix.indptr.astype(np.int64)))
        links.codes.copy_(torch.from_numpy(matrix.indices.astype(np.int32)))
        links.strengths.copy_(torch.from_numpy(matrix.data.astype(np.float32)))
        return links

    def matrix(self) -> csr_array:
        """The links as a (I, I) scipy matrix."""
        items = len(self.starts) - 1
        parts = (self.strengths.cpu().numpy(), self.codes.cpu().numpy(), self.starts.cpu().numpy())
        return csr_array(parts, shape=(items, items))

    def to_others(self) -> csr_array:
        """The (I, I) matrix without the links of items to themselves."""
        own = self.matrix()
        return csr_array(own - diags_array(own.diagonal()))

    def extended(self, nearest: csr_array) -> ItemLinks:
        """The links with N more items, which have the mean links of their nearest known items.

        The link of an item to itself is left out of these means: "not again" holds for the item
        alone, and not for items like it.

        Args:
            nearest: (N, I) weights of the known items.
        """
        own = self.matrix()
        others = self.to_others()
        rows = csr_array(nearest @ others)
        ahead, corner = csr_array(others @ nearest.T), csr_array(rows @ nearest.T)
        return ItemLinks.of(csr_array(block_array([[own, ahead], [rows, corner]])))

    def masses(self, items: Tensor) -> Tensor:
        """(...) sums of the rows of (...) item codes; 0 for `NO_ITEM`."""
        total = F.pad(self.strengths.double().cumsum(0), (1, 0))
        code = items.clamp(min=0)
        sums = (total[self.starts[code + 1]] - total[self.starts[code]]).float()
        return torch.where(items == NO_ITEM, 0.0, sums)

    def spread(self, items: Tensor, weights: Tensor, start: int, stop: int) -> Tensor:
        """(N, stop - start) sums of the rows of (N, M) items times (N, M) weights.

        Args:
            items: Item codes, `NO_ITEM` for empty slots.
            weights: Weights of the rows.
            start: First item code for which the sums are computed.
            stop: Item code after the last of them.
        """
        row = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        real = items != NO_ITEM
        code, row, weight = items[real], row[real], weights[real]
        first = self.starts[code]
        counts = self.starts[code + 1] - first
        owner = torch.repeat_interleave(counts)
        ahead = counts.cumsum(0) - counts
        place = first[owner] + torch.arange(len(owner), device=owner.device) - ahead[owner]
        column = self.codes[place].long() - start
        values = self.strengths[place] * weight[owner]
        inside = (column >= 0) & (column < stop - start)
        sums = weights.new_zeros(len(items) * (stop - start))
        index = row[owner[inside]] * (stop - start) + column[inside]
        return sums.index_add(0, index, values[inside]).view(len(items), stop - start)


def nearest_items(texts: Tensor, added: int) -> csr_array:
    """(N, I) equal weights of the `NEAREST` known items with the most similar text vectors.

    Args:
        texts: (I + N, H) text vectors, those of the new items last. Without text vectors (H = 0)
            all weights are 0.
        added: Number N of new items.
    """
    known, new = texts[: len(texts) - added], texts[len(texts) - added :]
    return _nearest(new, known, min(NEAREST, len(known)), others=False)


def nearest_others(texts: Tensor) -> csr_array:
    """(I, I) the same for each of I known items, which is not among its own nearest items."""
    return _nearest(texts, texts, min(NEAREST, len(texts) - 1), others=True)


def _nearest(new: Tensor, known: Tensor, count: int, *, others: bool) -> csr_array:
    shape = (len(new), len(known))
    if not known.shape[1]:
        return csr_array(shape, dtype=np.float32)
    columns = []
    for start in range(0, len(new), 256):
        cosines = F.normalize(new[start : start + 256], dim=1) @ F.normalize(known, dim=1).T
        if others:
            cosines.diagonal(start).fill_(-torch.inf)
        columns.append(cosines.topk(count, dim=1).indices)
    codes = torch.cat(columns).cpu().numpy().ravel()
    starts = np.arange(len(new) + 1) * count
    weights = np.full(len(codes), 1 / max(1, count), np.float32)
    return csr_array((weights, codes, starts), shape=shape)
