"""How many tokens a batch should have: found while working, as it depends on chip and model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SMALLEST, FIRST, LARGEST = 256, 1024, 65_536
GAIN = 1.05
"""A larger batch has to read so many times as many tokens a second to be kept."""
FULL = 0.6
"""Batches that fill less of the budget say nothing about it."""


class TokenBudget:
    """Doubles from `FIRST` as long as that reads more tokens a second. Speed and memory alone.

    Args:
        fixed: A budget that stays as it is.

    Attributes:
        tokens: Tokens of the next batch, padding included.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.tokens = fixed or FIRST
        self._settled = fixed is not None
        self._best = 0.0

    @contextmanager
    def measured(self, tokens: int) -> Iterator[None]:
        """Around the reading of one batch of so many tokens; its result must be waited for."""
        began = time.perf_counter()
        yield
        if self._settled or tokens < FULL * self.tokens:
            return
        rate = tokens / max(time.perf_counter() - began, 1e-9)
        if rate > GAIN * self._best and self.tokens < LARGEST:
            self._best = rate
            self.tokens *= 2
        else:
            self.tokens //= 2
            self._settled = True

    def halve(self) -> bool:
        """After memory ran out: whether a smaller budget is left to try."""
        self.tokens //= 2
        self._settled = True
        return self.tokens >= SMALLEST
