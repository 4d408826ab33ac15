"""Rank correlation that says so where there is nothing to correlate."""

from __future__ import annotations

from llm_influence.attribution import quality
from llm_influence.types import FloatArray


def spearman(values: FloatArray, scores: FloatArray) -> float:
    """Spearman's rank correlation of two (n,) arrays.

    nan below three points or where ``values`` are all the same; 0 where only ``scores`` are: a
    method that says nothing has foretold nothing.
    """
    told = len(values) >= quality.FEWEST and not quality.constant(values)
    return 0.0 if told and quality.constant(scores) else quality.spearman(values, scores)
