"""Where a path to the input begins."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llm_influence.attribution.neutral import mean_vectors
from llm_influence.attribution.task import Task
from llm_influence.errors import ExplanationError, choices

Baseline = Literal["mean", "zero"]


def starting_vectors(task: Task, inputs: Tensor, kind: Baseline, method: str) -> Tensor:
    """(N, T, H) input vectors with every event's tokens at the baseline, the frame as it is.

    Args:
        task: What is explained.
        inputs: (N, T, H) the histories' own vectors.
        kind: ``mean``: each token becomes the average vector of its field, without what the
            template adds to it; ``zero``: nothing.
        method: Who asks, for the message.

    Raises:
        ExplanationError: No such baseline.
    """
    in_event = (task.batch.event_index >= 0)[..., None]
    if kind == "zero":
        return torch.where(in_event, torch.zeros_like(inputs), inputs)
    if kind != "mean":
        raise ExplanationError(
            f"unknown baseline {kind!r}",
            where=method,
            expected=choices(["mean", "zero"], kind),
            fix="choose one of them",
        )
    means = mean_vectors(task.model)[task.batch.field_index]
    return torch.where(in_event, means, inputs)
