"""How many tokens a batch should have, and batches of so many: neither changes any answer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import IntArray

ON_CPU = 1024
"""More tokens a batch are no faster on a CPU, and a batch of like lengths wastes less."""
SMALLEST, LARGEST = 256, 262_144
SHARE = 0.25
"""Of an accelerator's free memory that the tokens of a batch may take."""
WIDTHS = 24
"""Numbers that a token takes in a layer at once, in widths of a state: attention and wide layer."""


class TokenBudget:
    """Tokens of a batch, padding included.

    Never found by the clock: two runs would then cut their batches differently, and their answers
    would differ in the last digit.

    Args:
        model: Whose size and device decide.
        fixed: A budget that stays as it is.

    Attributes:
        tokens: Tokens of the next batch.
    """

    def __init__(self, model: InfluenceModel, fixed: int | None = None) -> None:
        self.tokens = fixed or _fitting(model)

    def halve(self) -> bool:
        """After memory ran out: whether a smaller budget is left to try."""
        self.tokens //= 2
        return self.tokens >= SMALLEST


def batches(lengths: IntArray, tokens: int) -> Iterator[IntArray]:
    """Numbers of the rows of one batch after the other, longest rows first.

    Args:
        lengths: (R,) tokens of every row.
        tokens: Of a batch, padding to its longest row included; a row that is longer by itself
            is a batch of its own.
    """
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _fitting(model: InfluenceModel) -> int:
    if model.device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(model.device)
    layers = model.backbone.model.config.num_hidden_layers
    kept = 2 * layers * model.backbone.width  # keys and values of all layers
    a_token = 4 * (kept + WIDTHS * model.backbone.width)
    return int(min(LARGEST, max(SMALLEST, SHARE * free // a_token)))
