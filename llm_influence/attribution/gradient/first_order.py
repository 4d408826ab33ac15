"""Gradients at the input itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.draws import generators
from llm_influence.attribution.gradient.parts import moved_parts, player_scores, times
from llm_influence.attribution.gradient.path import Surface
from llm_influence.attribution.gradient.sampling import check_samples, means
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task


@register(
    name="saliency",
    family="gradient",
    units="share",
    removals=(),
    cost="1 forward and 1 backward pass, and 2 forward passes for the completeness gap",
    estimates="how strongly f reacts to a small change of the event's vectors, in any direction",
    equation="a_i = sum over the tokens t of i of the length of df/dx_t, divided by that of all "
    "tokens",
    paper="Simonyan et al. 2014, arXiv:1312.6034",
    caution="Never negative, and nothing of the event itself: sensitivity, no support.",
)
def saliency(task: Task) -> Attribution:
    """Shares of the lengths (L2) of the gradient at the event's tokens."""
    surface, rows = Surface(task), np.arange(len(task.histories))
    _, lengths = surface.gradients(
        rows, surface.inputs.__getitem__, lambda _, g: g.norm(dim=-1, keepdim=True)
    )
    events, frame = player_scores(task, lengths)
    totals = np.array([row.sum() for row in events]) + frame
    totals[totals == 0] = 1.0
    base, full = task.values.ends()
    return Attribution(
        scores=[row / total for row, total in zip(events, totals, strict=True)],
        frame=frame / totals,
        base=base,
        full=full,
        passes=task.values.passes + surface.passes,
    )


@register(
    name="input_x_gradient",
    family="gradient",
    units="target",
    removals=(),
    cost="1 forward and 1 backward pass, and 1 forward for the baseline",
    estimates="the first-order change of f from a zero input to this one",
    equation="a_i = sum over the tokens t of i of x_t . df/dx_t",
    paper="Shrikumar et al. 2016, arXiv:1605.01713",
    caution="Exact for linear models alone; where the prediction is sure it can order events worse "
    "than chance.",
    players=("events", "fields"),
    to_zero={},
)
def input_x_gradient(task: Task) -> Attribution:
    """``score = sum over the event's tokens of input . gradient``, signs kept."""
    surface, rows = Surface(task), np.arange(len(task.histories))
    read = partial(times, moved_parts(task, surface.inputs))
    full, scores = surface.gradients(rows, surface.inputs.__getitem__, read)
    players, frame = player_scores(task, scores)
    base = surface.values(rows, lambda chosen: torch.zeros_like(surface.inputs[chosen]))
    return Attribution(players, frame, base, full, surface.passes)


@register(
    name="smoothgrad",
    family="gradient",
    units="target",
    removals=(),
    cost="`samples` forward and backward passes, and 2 forward passes",
    estimates="input x gradient, the gradient averaged over inputs nearby",
    equation="a_i = sum over tokens t of i of x_t . mean over draws of df/dx_t at x + e, "
    "e_t normal with standard deviation noise . |x_t| / sqrt(H)",
    paper="Smilkov et al. 2017, arXiv:1706.03825",
    caution="Still first order: the noise takes the gradient's jitter away, not its saturation.",
    players=("events", "fields"),
    to_zero={},
)
def smoothgrad(task: Task, *, samples: int = 16, noise: float = 0.1) -> Attribution:
    """``score = sum over tokens of input . mean gradient at noisy inputs``, with its error.

    Args:
        task: What is explained.
        samples: Draws of noise, seeded by user.
        noise: Length of the noise at a token, as a part of the token's own vector.

    Raises:
        ExplanationError: An option has no sense.
    """
    check_samples("smoothgrad", samples)
    surface = Surface(task)
    every, read = np.arange(len(task.histories)), partial(times, moved_parts(task, surface.inputs))
    width = surface.inputs.shape[-1]
    scale = noise * surface.inputs.norm(dim=-1, keepdim=True) / width**0.5
    draws, found = generators(task), []
    for _ in range(samples):
        noisy = surface.inputs + scale * _normal(surface, draws)
        found.append(surface.gradients(every, noisy.__getitem__, read)[1])
    scores, frame, errors = means(task, found)
    base = surface.values(every, lambda chosen: torch.zeros_like(surface.inputs[chosen]))
    full = surface.values(every, surface.inputs.__getitem__)
    return Attribution(scores, frame, base, full, surface.passes, standard_errors=errors)


def _normal(surface: Surface, draws: list[np.random.Generator]) -> Tensor:
    """(N, T, H) normal numbers, each history's from its own generator; 0 at padding."""
    noise = np.zeros(surface.inputs.shape, dtype=np.float32)
    for row, (draw, length) in enumerate(zip(draws, surface.lengths, strict=True)):
        noise[row, :length] = draw.standard_normal((length, noise.shape[-1]), dtype=np.float32)
    return torch.from_numpy(noise).to(surface.inputs)
