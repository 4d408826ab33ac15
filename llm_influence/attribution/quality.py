"""The quality card: what is measured about an explanation, and shown beside it.

The same is measured for every method. The sets of events on which scores are tested depend on the
user and the seed alone, so the cards of two methods can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.attribution.coalitions import proper_coalitions
from llm_influence.attribution.registry import Attribution, Method, Task, user_generator
from llm_influence.influence.facts import QualityCard
from llm_influence.numerics import spearman
from llm_influence.types import BoolArray, IntArray

_STREAM = 1
"""Separates these draws from those of a method with the same seed and user."""


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What is measured for the card.

    Attributes:
        fidelity_masks: Random sets of events on which the scores are tested; 0: none.
        agree_with: Another method to compare the scores with; None: no comparison.
    """

    fidelity_masks: int
    agree_with: Method | None


def quality_cards(
    task: Task,
    method: Method,
    attribution: Attribution,
    left_out: Sequence[int],
    options: CardOptions,
) -> list[QualityCard]:
    """The cards of the N explanations of one task.

    Costs up to ``fidelity_masks`` model evaluations a history, and those of the other method.
    Subsets that the method has already evaluated are not evaluated again.
    """
    gaps, errors = attribution.completeness_gaps(), attribution.standard_errors
    lds, tried, evaluations = _linear_fidelity(task, attribution, options.fidelity_masks)
    agreement, more_evaluations = _agreement(task, attribution, options.agree_with)
    return [
        QualityCard(
            method=method.name,
            removal=task.removal if method.removals else "none",
            units=method.units,
            completeness_gap=float(gaps[row]),
            evaluations=int(attribution.evaluations[row]),
            seed=task.seed,
            left_out=int(left_out[row]),
            largest_standard_error=float("nan") if errors is None else float(np.max(errors[row])),
            converged=None if attribution.converged is None else bool(attribution.converged[row]),
            lds=lds[row],
            fidelity_masks=tried[row],
            agreement=agreement[row],
            agreement_with=options.agree_with.name if options.agree_with else "",
            card_evaluations=int(evaluations[row] + more_evaluations[row]),
            bfloat16_error=task.values.bfloat16_error,
        )
        for row in range(len(gaps))
    ]


def spare_masks(user_id: str, players: int, count: int, seed: int) -> BoolArray:
    """(M, P) random sets of players, each kept with probability 1/2 (`proper_coalitions`)."""
    return proper_coalitions(user_generator(seed, user_id, _STREAM), players, count)


def _linear_fidelity(
    task: Task, attribution: Attribution, count: int
) -> tuple[list[float], list[int], IntArray]:
    """LDS, the number of sets it is based on, and (N,) evaluations, of N histories.

    ``LDS = Spearman over S of f(x_S) and the sum of the scores of S`` (Park et al. 2023,
    arXiv:2303.14186, where S are sets of training examples).
    """
    if not count:
        size = len(task.histories)
        return [float("nan")] * size, [0] * size, np.zeros_like(attribution.evaluations)
    task.values.restart()
    masks = [
        spare_masks(history.user_id, size, count, task.seed)
        for history, size in zip(task.histories, task.sizes, strict=True)
    ]
    values = task.values(masks)
    sums = [mask @ scores for mask, scores in zip(masks, attribution.scores, strict=True)]
    lds = [spearman(value, total) for value, total in zip(values, sums, strict=True)]
    return lds, [len(mask) for mask in masks], task.values.evaluations


def _agreement(
    task: Task, attribution: Attribution, other: Method | None
) -> tuple[list[float], IntArray]:
    """Spearman of the scores with another method's, and (N,) evaluations of the other method."""
    if other is None:
        return [float("nan")] * len(attribution.scores), np.zeros_like(attribution.evaluations)
    if other.removals and task.removal not in other.removals:
        task = task.like(removal=other.removals[0])
    task.values.restart()
    second = other.run(task)
    pairs = zip(attribution.scores, second.scores, strict=True)
    return [spearman(ours, theirs) for ours, theirs in pairs], second.evaluations
