"""The explanation of an ensemble: the weighted sum of those of its members.

The explained value of an ensemble is the weighted sum of its members' own values. All methods here
are linear in the value or are scores without a unit, so an event's influence is the weighted sum of
its influences in the members. Base value, full value and prompt add up in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llm_influence.attribution.target import BoundTarget
from llm_influence.errors import ExplanationError
from llm_influence.influence.facts import QualityCard
from llm_influence.influence.influence import Influence
from llm_influence.types import FloatArray


def weighted_sum(
    records: Sequence[Influence], weights: Sequence[float], target: BoundTarget
) -> Influence:
    """The explanation of an ensemble for one history.

    An event outside the context of a member has no influence there. Events that one member scores
    together are scored together in the sum. Standard errors are those of
    independent draws, ``sqrt(sum of w^2 se^2)``. The card has the sum of the evaluations, the
    completeness gap of the weighted sum, and the lowest linear fidelity and agreement of a member.

    Args:
        records: One explanation by each member, of the same target.
        weights: Weights of the members.
        target: The target.

    Raises:
        ExplanationError: The members render different fields, which are the players.
    """
    longest = max(records, key=lambda record: len(record.events))
    if any(record.players != longest.players for record in records):
        raise ExplanationError(
            "the members of the ensemble render different fields",
            where="players 'fields'",
            expected="members with equal templates and contexts",
            fix="explain whole events, or one member, as in ensemble.members[0]",
        )
    pairs = list(zip(weights, records, strict=True))

    def total(name: str) -> float:
        return sum(weight * getattr(record, name) for weight, record in pairs)

    size = len(longest.values)
    values = sum((w * _padded(r.values, size) for w, r in pairs), np.zeros(size))
    squares = [
        np.square(w * _padded(r.standard_errors, size))
        for w, r in pairs
        if r.standard_errors is not None
    ]
    errors = np.sqrt(sum(squares, np.zeros(size))) if squares else None
    block = sorted({place + size - len(r.values) for r in records for place in r.block})
    for numbers in (values, errors):
        if block and numbers is not None:
            numbers[block] = numbers[block].mean()
    summed = replace(
        longest,
        values=values,
        prompt_score=total("prompt_score"),
        base_value=total("base_value"),
        full_value=total("full_value"),
        standard_errors=errors,
        block=tuple(block),
        unread=tuple(f for f in longest.unread if all(f in r.unread for r in records)),
        gates=records[0].gates if len(records) == 1 else None,
        # The mean of log-probabilities is no sum of the members' parts.
        memory_shares=records[0].memory_shares if len(records) == 1 else None,
        memory_log_odds=records[0].memory_log_odds if len(records) == 1 else None,
    )
    chance = float(target.probabilities(np.array([summed.full_value]))[0])
    card = _card([record.quality for record in records], weights, summed)
    return replace(summed, prediction=chance, quality=card)


def _padded(values: FloatArray, size: int) -> FloatArray:
    """Zeros for the older events that a member does not read."""
    return np.pad(values, (size - len(values), 0))


def _card(cards: Sequence[QualityCard], weights: Sequence[float], summed: Influence) -> QualityCard:
    moved = summed.full_value - summed.base_value
    gap = abs(summed.values.sum() + summed.prompt_score - moved)
    errors, converged = summed.standard_errors, [card.converged for card in cards]
    return replace(
        cards[0],
        completeness_gap=float(gap / abs(moved)) if moved else math.nan,
        evaluations=sum(card.evaluations for card in cards),
        left_out=min(card.left_out for card in cards),
        largest_standard_error=math.nan if errors is None else float(errors.max()),
        converged=None if None in converged else all(converged),
        lds=float(np.min([card.lds for card in cards])),
        fidelity_masks=min(card.fidelity_masks for card in cards),
        agreement=float(np.min([card.agreement for card in cards])),
        card_evaluations=sum(card.card_evaluations for card in cards),
        bfloat16_error=sum(w * card.bfloat16_error for w, card in zip(weights, cards, strict=True)),
    )
