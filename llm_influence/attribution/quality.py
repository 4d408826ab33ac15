"""The quality card: what is measured about an explanation, beside it.

Whatever is measured here is the same for every method: the sets of events on which scores are
tried are drawn from the user and the seed, never from the batch or the method, so that the cards
of two methods can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_influence.attribution.coalitions import proper_coalitions
from llm_influence.attribution.registry import Attribution, MethodSpec, Task, user_generator
from llm_influence.influence.influence import QualityCard
from llm_influence.numerics import spearman
from llm_influence.types import BoolArray, IntArray

_STREAM = 1
"""Keeps these draws apart from those of a method with the same seed and user."""


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What is measured for the card.

    Attributes:
        fidelity_masks: Random sets of events that the scores are tried on; 0: none.
        agree_with: Another method to compare the scores with; None: no comparison.
    """

    fidelity_masks: int
    agree_with: MethodSpec | None


def quality_cards(
    task: Task,
    spec: MethodSpec,
    attribution: Attribution,
    left_out: Sequence[int],
    options: CardOptions,
) -> list[QualityCard]:
    """The cards of the N explanations of one task.

    Costs up to ``fidelity_masks`` model evaluations a history, and those of the other method; subsets
    that the method has already computed are not computed again.
    """
    gaps, errors = attribution.completeness_gaps(), attribution.standard_errors
    lds, tried, card_evaluations = _linear_fidelity(task, attribution, options.fidelity_masks)
    agreement, more_passes = _agreement(task, attribution, options.agree_with)
    return [
        QualityCard(
            method=spec.name,
            removal=task.removal if spec.removals else "none",
            units=spec.units,
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
            card_evaluations=int(card_evaluations[row] + more_passes[row]),
            bfloat16_error=task.values.bfloat16_error,
        )
        for row in range(len(gaps))
    ]


def spare_masks(user_id: str, players: int, count: int, seed: int) -> BoolArray:
    """(M, P) random sets of players, each kept with probability 1/2 (`proper_coalitions`).

    The draw depends on the user, the seed and P alone.
    """
    return proper_coalitions(user_generator(seed, user_id, _STREAM), players, count)


def _linear_fidelity(
    task: Task, attribution: Attribution, count: int
) -> tuple[list[float], list[int], IntArray]:
    """LDS, the number of sets it rests on, and (N,) evaluations, of N histories.

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
    task: Task, attribution: Attribution, other: MethodSpec | None
) -> tuple[list[float], IntArray]:
    """Spearman of the scores with another method's, and (N,) evaluations that the other took."""
    if other is None:
        return [float("nan")] * len(attribution.scores), np.zeros_like(attribution.evaluations)
    if other.removals and task.removal not in other.removals:
        task = replace(task, removal=other.removals[0])
    task.values.restart()
    found = other.run(task)
    pairs = zip(attribution.scores, found.scores, strict=True)
    return [spearman(ours, theirs) for ours, theirs in pairs], found.evaluations
