"""Methods that remove events and look at what happens."""

from __future__ import annotations

import numpy as np

from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task


@register(
    name="leave_one_out",
    family="perturbation",
    units="target",
    removals=("drop", "mask", "replace"),
    cost="E + 2 forward passes",
    estimates="f(all events) - f(all but this one)",
    equation="a_i = f(E) - f(E without i)",
    paper="Li et al. 2016, arXiv:1612.08220",
    caution="Two events that say the same thing hide each other: each alone can be spared.",
)
def leave_one_out(task: Task) -> Attribution:
    """Influence of an event is what the target loses when that event alone is removed.

    ``score_i = f(E) - f(E without i)``. Scores do not promise to add up to ``f(E) - f(none)``.
    """
    values = task.values([_masks(size) for size in task.sizes])
    return Attribution(
        scores=[value[1] - value[2:] for value in values],
        frame=np.zeros(len(values)),
        base=np.array([value[0] for value in values]),
        full=np.array([value[1] for value in values]),
        passes=task.values.passes.copy(),
    )


def _masks(size: int) -> np.ndarray:
    """(E + 2, E): no event, all events, and all but each."""
    none, everything = np.zeros((1, size), dtype=bool), np.ones((1, size), dtype=bool)
    return np.concatenate([none, everything, ~np.eye(size, dtype=bool)])
