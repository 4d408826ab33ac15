"""The model parameter randomisation test: scores that read the model must change with its weights.

Adebayo et al. 2018, arXiv:1810.03292. Every tensor of weights keeps its numbers and loses their
order, so sizes stay plausible for any architecture while all that was learned is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_influence.modeling.model import InfluenceModel


@contextmanager
def scrambled(model: InfluenceModel, seed: int = 0) -> Iterator[None]:
    """Shuffle the numbers of every weight tensor; the weights come back afterwards.

    Texts of items are input, not weights, and stay. Two calls with one seed scramble alike.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = list(model.parameters())
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
