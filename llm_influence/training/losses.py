"""Losses of the next item against a few others instead of the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled_softmax(
    own: Tensor, others: Tensor, unused: Tensor, own_log_q: Tensor, others_log_q: Tensor
) -> Tensor:
    """(N,) cross-entropy among a label and the drawn items, corrected for how they were drawn.

    ``-log softmax(s - log q)`` at the label, over the label and the drawn items that are not it
    (Bengio & Senecal 2008; logQ correction: Yi et al. 2019, doi:10.1145/3298689.3346996). With
    q the probability of inclusion this is the exact posterior of the label given the set, so
    the true log-probabilities minimise it for any number of drawn items.

    Args:
        own: (N,) logit of each position's label.
        others: (N, K) logits of the drawn items.
        unused: (N, K) bool, where a drawn item does not count, as it is the label itself.
        own_log_q: (N,) log-probability that the label would have been drawn.
        others_log_q: (K,) log-probability that a drawn item was.
    """
    own = (own - own_log_q)[:, None]
    others = (others - others_log_q).masked_fill(unused, -torch.inf)
    return torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]


def gbce(
    own: Tensor, others: Tensor, unused: Tensor, *, rate: float, items: int, calibration: float
) -> Tensor:
    """(N,) generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv:2308.07192).

    ``(-beta log sigma(s) - sum of log(1 - sigma(other s))) / (k + 1)``, where
    ``beta = rate (t (1 - 1 / rate) + 1 / rate)``: plain BCE is overconfident by as much as
    negatives are rarer in training than in the catalogue. ``k = rate (items - 1)`` is how many
    negatives a label has on average, so that the size of a draw does not weigh on its items.

    Args:
        own: (N,) logit of each position's label.
        others: (N, K) logits of items drawn evenly.
        unused: (N, K) bool, where a drawn item does not count, as it is the label itself.
        rate: Probability that an item is drawn.
        items: Size of the catalogue.
        calibration: t; 0 is plain BCE, 1 gives calibrated probabilities.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    negatives = F.softplus(others).masked_fill(unused, 0).sum(dim=1)  # -log(1 - sigma(s))
    return (negatives - beta * F.logsigmoid(own)) / (1 + rate * (items - 1))
