"""The quality card in words."""

from __future__ import annotations

import math

from llm_influence.influence.numbers import percent, plain, signed
from llm_influence.influence.record import Influence


def card_words(influence: Influence) -> list[str]:
    """What the card says, a phrase each; what was not measured is not mentioned."""
    card = influence.quality
    words = [
        f"removal {card.removal}",
        f"completeness gap {completeness_words(influence)}",
        _passes(card.passes),
        f"seed {card.seed}",
    ]
    if not math.isnan(card.largest_standard_error):
        words.append(f"standard errors up to {plain(card.largest_standard_error)}")
    if not math.isnan(card.bfloat16_error):
        words.append(f"read in bfloat16, off by up to {plain(card.bfloat16_error)}")
    if card.converged is not None:
        words.append("converged" if card.converged else "did not converge")
    if not math.isnan(card.lds):
        words.append(f"linear fidelity {correlation(card.lds)} on {card.fidelity_masks} sets")
    if not math.isnan(card.agreement):
        words.append(f"agreement with {card.agreement_with} {correlation(card.agreement)}")
    if card.card_passes:
        words.append(f"{_passes(card.card_passes)} for this card")
    return words


def completeness_words(influence: Influence) -> str:
    """The completeness gap, or that the method promises none."""
    if influence.quality.units == "share":
        return "not promised"
    return percent(influence.quality.completeness_gap)


def correlation(value: float) -> str:
    """A correlation with its sign: ``+0.79``, ``0``; only an exact 1 is ``+1.00``."""
    cut = math.copysign(min(abs(value), 0.99), value) if 0.99 < abs(value) < 1 else value
    return signed(round(cut, 2))


def _passes(count: int) -> str:
    return f"{count} pass" if count == 1 else f"{count} passes"
