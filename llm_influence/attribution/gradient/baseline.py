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
        ExplanationError: No such baseline, or one that the backbone cannot tell from any other.
    """
    in_event = (task.batch.event_index >= 0)[..., None]
    if kind == "zero":
        check_length_counts(task, f"{method}, baseline 'zero'")
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


def check_length_counts(task: Task, what: str) -> None:
    """Refuse to follow a vector to zero where the model sees its direction alone.

    Raises:
        ExplanationError: The backbone normalises its input vectors first.
    """
    if task.model.backbone.loses_length:
        raise ExplanationError(
            f"{task.model.backbone.model.config.model_type} normalises its input vectors first",
            where=what,
            expected="a backbone that feels the length of an input vector",
            fix="use integrated_gradients with baseline 'mean', or a perturbation method",
        )
