"""Reference points: scores that know nothing of the model. A method must beat them to mean more."""

from __future__ import annotations

import zlib

import numpy as np

from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task


@register(
    name="random",
    family="reference",
    units="share",
    removals=(),
    cost="2 forward passes, for the completeness gap alone",
    estimates="nothing",
    equation="a drawn from a flat Dirichlet",
    paper="",
    caution="A floor for comparisons, never an explanation.",
)
def random_scores(task: Task) -> Attribution:
    """Shares drawn uniformly from the simplex; seeded by user, so any batch gives the same."""
    draws = [
        np.random.default_rng([task.seed, zlib.crc32(history.user_id.encode())])
        for history in task.histories
    ]
    sizes = task.sizes
    return _shares(task, [d.dirichlet(np.ones(n)) for d, n in zip(draws, sizes, strict=True)])


@register(
    name="recency",
    family="reference",
    units="share",
    removals=(),
    cost="2 forward passes, for the completeness gap alone",
    estimates="how recent an event is",
    equation="a_i = 2^(i - E) / sum of all",
    paper="",
    caution="Often near the truth for the wrong reason: sequence models do favour the last events.",
)
def recency(task: Task) -> Attribution:
    """Shares that halve with every step into the past."""
    halves = [0.5 ** np.arange(size, dtype=np.float64)[::-1] for size in task.sizes]
    return _shares(task, [half / half.sum() for half in halves])


def _shares(task: Task, scores: list[np.ndarray]) -> Attribution:
    base, full = task.values.ends()
    return Attribution(scores, np.zeros(len(scores)), base, full, task.values.passes.copy())
