"""The contrastive loss: a user's history is recognised in either of two views of it."""

from __future__ import annotations

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

NOBODY = -1
"""Owner of a window without events, which has no views: it is no anchor and no negative."""


def contrastive_loss(views: Tensor, owners: Tensor, temperature: float) -> Tensor:
    """(B,) InfoNCE of each window, the mean over its two views (CL4SRec, arXiv:2010.14395).

    A view's negatives are the views of other users' windows in the micro-batch, those of all
    processes: they are gathered with their gradients.

    Args:
        views: (2, B, H) states after the two views of B windows.
        owners: (B,) the window's user; windows of the same user are no negatives of each other.
        temperature: Cosines are divided by it.
    """
    views = F.normalize(views.float(), dim=-1)
    candidates, of_candidates = _from_all(views.flatten(0, 1)), _from_all(owners.repeat(2))
    negative = (owners[:, None] != of_candidates) & (of_candidates != NOBODY)
    losses = [
        info_nce(anchor, twin, candidates, negative, temperature)
        for anchor, twin in ((views[0], views[1]), (views[1], views[0]))
    ]
    return torch.stack(losses).mean(dim=0) * (owners != NOBODY)


def info_nce(
    anchors: Tensor, twins: Tensor, candidates: Tensor, negative: Tensor, temperature: float
) -> Tensor:
    """(A,) ``-log(e^{a.t / tau} / (e^{a.t / tau} + sum of e^{a.c / tau} over its negatives))``.

    van den Oord et al. 2018 (arXiv:1807.03748); with twins from the same batch it is NT-Xent.

    Args:
        anchors: (A, H).
        twins: (A, H), the one that each anchor should find.
        candidates: (C, H).
        negative: (A, C) bool, which candidates are an anchor's negatives.
        temperature: tau.
    """
    own = (anchors * twins).sum(dim=-1, keepdim=True) / temperature
    others = (anchors @ candidates.T / temperature).masked_fill(~negative, -torch.inf)
    return torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]


def _from_all(rows: Tensor) -> Tensor:
    """(P * N, ...) the (N, ...) rows of all P processes, through which gradients flow back."""
    if PartialState().num_processes == 1:
        return rows
    return torch.cat(all_gather(rows))
