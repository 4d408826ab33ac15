"""Expected gradients: integrated gradients whose baselines are drawn at random."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.draws import generators
from llm_influence.attribution.gradient.parts import moved_parts, times
from llm_influence.attribution.gradient.path import Surface
from llm_influence.attribution.gradient.sampling import check_samples, means
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.pieces import UnitPieces
from llm_influence.rendering.template import FIELDS


@register(
    name="expected_gradients",
    family="gradient",
    units="target",
    removals=(),
    cost="`samples` forward and backward passes, as many forward passes, and 1",
    estimates="the path integral of the gradient from a random other history to this one, averaged",
    equation="a_i = mean over draws of x' and s in [0, 1] of sum over tokens t of i: "
    "(x_t - x'_t) . df/dx_t at x' + s (x - x')",
    paper="Erion et al. 2021, arXiv:1906.10670",
    caution="Noisy: look at the standard errors. Complete in expectation, not in every answer.",
    players=("events", "fields"),
)
def expected_gradients(task: Task, *, samples: int = 32) -> Attribution:
    """Integrated gradients averaged over baselines, one point of each path.

    A draw puts another unit of the same field in each event token's place, and in the place of
    whatever the template adds to it (style ``text``: another token of the vocabulary), each as
    likely as the other; the frame stays. Points of the paths are stratified: each of ``samples``
    equal parts of [0, 1] gets one. The base value is the mean value of the drawn baselines.

    Args:
        task: What is explained.
        samples: Draws, seeded by user. The standard errors are those of independent draws; with
            stratified points the true ones are no larger on average.

    Raises:
        ExplanationError: Fewer than two samples.
    """
    check_samples("expected_gradients", samples)
    surface, every = Surface(task), np.arange(len(task.histories))
    draws = generators(task)
    strata = np.stack([draw.permutation(samples) for draw in draws])
    found, bases = [], []
    for number in range(samples):
        start, added = _another(surface, draws)
        place = (strata[:, number] + np.array([draw.random() for draw in draws])) / samples
        moved = surface.inputs - start
        between = start + torch.from_numpy(place)[:, None, None].to(start) * moved
        read = partial(times, moved_parts(task, moved, added))
        found.append(surface.gradients(every, between.__getitem__, read)[1])
        bases.append(surface.values(every, start.__getitem__))
    scores, frame, errors = means(task, found)
    return Attribution(
        scores=scores,
        frame=frame,
        base=np.mean(bases, axis=0),
        full=surface.values(every, surface.inputs.__getitem__),
        passes=surface.passes,
        standard_errors=errors,
    )


@torch.no_grad()
def _another(surface: Surface, draws: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """(N, T, H) vectors of drawn units in every event's place, and (N, T, A) those added there."""
    model, batch = surface.task.model, surface.task.batch
    ids, added = batch.input_ids.cpu().numpy().copy(), batch.added_ids.cpu().numpy().copy()
    fields, events = batch.field_index.cpu().numpy(), batch.event_index.cpu().numpy()
    columns = list(enumerate(model.encoder.template.added))
    for row, (draw, length) in enumerate(zip(draws, surface.lengths, strict=True)):
        places = np.flatnonzero(events[row, :length] >= 0)
        ids[row, places] = [_drawn(draw, model, field) for field in fields[row, places]]
        for column, name in columns:
            there = places[added[row, places, column] >= 0]
            added[row, there, column] = [_drawn(draw, model, FIELDS.index(name)) for _ in there]
    device = surface.inputs.device
    other = replace(
        batch,
        input_ids=torch.from_numpy(ids).to(device),
        added_ids=torch.from_numpy(added).to(device),
    )
    in_event = (batch.event_index >= 0)[..., None]
    return torch.where(in_event, model.embed(other), surface.inputs), other.added_ids


def _drawn(draw: np.random.Generator, model: InfluenceModel, field: int) -> int:
    """A unit of the field; style ``text``: a token of the vocabulary."""
    pieces = model.encoder.pieces
    if isinstance(pieces, UnitPieces):
        units = pieces.units_of(FIELDS[field])
        return int(draw.integers(units.start, units.stop))
    return int(draw.integers(len(model.body.get_input_embeddings().weight)))
