"""Vectors of units: what their words mean, moved by what training learned about each.

``vector(u) = project(words(u)) + residual(u)``. ``words`` comes from the untuned backbone and is
never trained; ``project`` is shared by all units; ``residual`` starts at zero. A unit that was
never trained on (a new item) has the words' part alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnitVectors(nn.Module):
    """Vectors of V units.

    Args:
        words: (V, D) text vectors of length one.
        width: Size H of the vectors made.
        scale: Length that a vector starts with; input embeddings want the backbone's own.
    """

    words: Tensor

    def __init__(self, words: Tensor, width: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.project = nn.Linear(words.shape[1], width, bias=False)
        self.residual = nn.Parameter(torch.zeros(len(words), width))
        with torch.no_grad():
            self.project.weight.copy_(torch.eye(width, words.shape[1]) * scale)

    def __len__(self) -> int:
        """Number of units V."""
        return len(self.words)

    def forward(self, ids: Tensor | slice) -> Tensor:
        """(..., H) vectors of the units ``ids``."""
        return self.project(self.words[ids]) + self.residual[ids]

    def extended(self, words: Tensor) -> UnitVectors:
        """A copy with further units at the end, which have their words' part alone."""
        longer = UnitVectors(torch.cat([self.words, words.to(self.words)]), self.residual.shape[1])
        longer = longer.to(self.words.device)
        with torch.no_grad():
            longer.project.weight.copy_(self.project.weight)
            longer.residual[: len(self)] = self.residual
        return longer.requires_grad_(self.residual.requires_grad)


def centred(words: Tensor) -> Tensor:
    """Remove the mean of (V, D) vectors and restore length one.

    Mean-pooled states of a language model share one large direction; without it, cosine tells
    items apart (Mu & Viswanath 2018, arXiv:1702.01417).
    """
    return nn.functional.normalize(words - words.mean(dim=0), dim=-1)
