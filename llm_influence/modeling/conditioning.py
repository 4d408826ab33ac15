"""Conditioning of the items' text vectors: centring, whitening, smoothing over co-occurrence.

A whitened text is ``W (t - mean)`` with ``W = ((1 - s) C + s tr(C) / H I)^(-1/2)``, where C is the
covariance of the catalogue's texts and s the shrinkage. All vectors are scaled to length one.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from llm_influence.data.log import BehaviorLog

ROWS = 32_768
"""Text vectors changed at a time; affects only memory."""
CLOSEST = 20
"""Items before or after an item that smooth its text vector: the most frequent ones."""


def directions(texts: Tensor, centre: Tensor, whitening: Tensor | None = None) -> Tensor:
    """(V, D) unit vectors of (V, D) texts: centred, and multiplied by a (D, D) matrix if given."""
    units = torch.empty_like(texts)
    for start in range(0, len(texts), ROWS):
        rows = slice(start, start + ROWS)
        centred = texts[rows] - centre
        units[rows] = F.normalize(centred if whitening is None else centred @ whitening, dim=-1)
    return units


def whitening_of(texts: Tensor, shrinkage: float) -> Tensor:
    """(D, D) matrix that whitens (V, D) texts.

    Args:
        texts: (V, D) text vectors.
        shrinkage: Share of the mean variance in the covariance: 0 whitens completely, 1 keeps all
            directions. Directions in which the texts do not vary become zero without shrinkage.
    """
    total = torch.zeros(texts.shape[1], texts.shape[1], dtype=torch.float64, device=texts.device)
    mean = texts.mean(dim=0)
    for start in range(0, len(texts), ROWS):
        centred = (texts[start : start + ROWS] - mean).double()
        total += centred.T @ centred
    covariance = total / len(texts)
    mean_variance = covariance.diagonal().mean()
    variances, axes = torch.linalg.eigh(covariance)
    variances = (1 - shrinkage) * variances + shrinkage * mean_variance
    varies = variances > 1e-7 * mean_variance
    scales = torch.where(varies, variances, 1.0).rsqrt() * varies
    return ((axes * scales) @ axes.T).to(texts)


def smoothed(units: Tensor, log: BehaviorLog, share: float) -> Tensor:
    """(I, D) unit vectors of items, mixed with those of the items beside them in a log.

    Args:
        units: (I, D) unit vectors by item code.
        log: Training events.
        share: Share of the mean of the `CLOSEST` items that precede or follow an item most often,
            weighted by these counts. An item without any keeps its vector.
    """
    together = _together(log, len(units))
    counts = np.asarray(together.sum(axis=1)).ravel()
    means = sparse.diags(1 / np.maximum(counts, 1)) @ together @ units.cpu().numpy()
    known = torch.from_numpy(counts > 0)[:, None]
    mixed = (1 - share) * units + share * torch.from_numpy(means).to(units)
    return torch.where(known.to(units.device), F.normalize(mixed, dim=-1), units)


def _together(log: BehaviorLog, items: int) -> sparse.csr_array:
    """(I, I) number of times that two items stand side by side, of each row the largest."""
    inside = np.diff(log.rows_of_users()) == 0
    before, after = log.items[:-1][inside], log.items[1:][inside]
    before, after = before[before != after], after[before != after]
    ones = np.ones(len(before), dtype=np.float32)
    one_way = sparse.coo_array((ones, (before, after)), shape=(items, items)).tocsr()
    both = (one_way + one_way.T).tocoo()
    order = np.lexsort((both.col, -both.data, both.row))
    rows = both.row[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = order[place < CLOSEST]
    entries = both.data[kept], (both.row[kept], both.col[kept])
    return sparse.coo_array(entries, shape=(items, items)).tocsr()
