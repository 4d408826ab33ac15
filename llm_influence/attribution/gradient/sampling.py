"""Means of random draws, with the error that they leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_influence.attribution.gradient.parts import player_scores
from llm_influence.attribution.task import Task
from llm_influence.errors import ExplanationError
from llm_influence.types import FloatArray


def means(
    task: Task, samples: Sequence[FloatArray]
) -> tuple[list[FloatArray], FloatArray, list[FloatArray]]:
    """Scores of N histories from two or more samples of (N, T, C) scores of parts.

    Returns:
        N arrays (P,) of means, (N,) means of the frame, N arrays (P,) of their standard errors
        (standard deviation of the samples over the root of their number).
    """
    found = [player_scores(task, scores) for scores in samples]
    rows = [np.stack(each) for each in zip(*(players for players, _ in found), strict=True)]
    return (
        [row.mean(axis=0) for row in rows],
        np.mean([frame for _, frame in found], axis=0),
        [row.std(axis=0, ddof=1) / len(row) ** 0.5 for row in rows],
    )


def check_samples(method: str, samples: int) -> None:
    """Refuse fewer draws than an error can be told from.

    Raises:
        ExplanationError: Fewer than two.
    """
    if samples < 2:
        raise ExplanationError(
            f"samples is {samples}",
            where=method,
            expected="at least 2: one draw has no standard error",
            fix="ask for more samples",
        )
