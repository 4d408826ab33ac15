"""A mean over users with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_influence.analysis.regression import LEVEL
from llm_influence.types import FloatArray


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def mean_of(values: FloatArray) -> Mean:
    """The mean of (n,) values, one a user, with Student's t interval; nan ends for one user."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Mean(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Mean(mean, mean - half, mean + half)
