"""The facts that a sentence may state, and numbers as text.

Numbers as people read them. Rounded, never rounded to something that is not so.

What a sentence about an influence may say: the facts, chosen once, before any wording.

The wording of each language (`english`, `chinese`) gets an `Account` and nothing else, so that a
sentence can name no event that carries no influence and no number that was not measured.

The quality card in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from llm_influence.influence.influence import Influence
from llm_influence.types import FloatArray, IntArray

# ruff: noqa: RUF001, RUF002 - typographic signs are meant: this file writes for people.


MINUS = "\N{MINUS SIGN}"


def signed(score: float) -> str:
    """A score with its sign: ``+1.23``, ``−0.40``, ``+0.0031``, ``0``. NaN is ``–``."""
    if not math.isfinite(score):
        return "–"
    if score == 0:
        return "0"
    return ("+" if score > 0 else MINUS) + _magnitude(abs(score))


def decimals_for(scores: ArrayLike) -> int:
    """How many decimals a column of scores needs: two digits of its largest, at least 2."""
    largest = float(np.abs(np.asarray(scores, dtype=np.float64)).max(initial=0.0))
    return 2 if largest == 0 else min(max(2, 1 - math.floor(math.log10(largest))), 12)


def aligned(score: float, decimals: int) -> str:
    """A score in a column of equal decimals: ``+1.23``, ``−0.04``; ``0.00`` if that is all."""
    if not math.isfinite(score):
        return "–"
    digits = f"{abs(score):.{decimals}f}"
    if float(digits) == 0:
        return digits
    return ("+" if score > 0 else MINUS) + digits


def percent(share: float) -> str:
    """A probability or share, two digits: ``34%``, ``3.2%``, ``0.041%``. NaN is ``–``.

    Only an exact 0 is ``0%`` and only an exact 1 is ``100%``.
    """
    if not math.isfinite(share):
        return "–"
    if share < 0:
        return MINUS + percent(-share)
    value = 100 * share
    if share in (0, 1) or value >= 100:
        return f"{value:.0f}%"
    if value >= 99.95:
        return ">99.9%"
    if value > 99:
        return f"{value:.1f}%"
    if value >= 9.95:
        return f"{value:.0f}%"
    return "<0.001%" if value < 0.001 else f"{_two_digits(value)}%"


def plain(value: float) -> str:
    """An event's value in its shortest form: ``5``, ``4.5``, ``19.99``."""
    return np.format_float_positional(np.float32(value), trim="-").replace("-", MINUS)


def _magnitude(value: float) -> str:
    if not 1e-6 <= value < 1e6:
        return f"{value:.1e}"
    return f"{value:.2f}" if value >= 0.0995 else _two_digits(value)


def _two_digits(value: float) -> str:
    """Two significant digits without an exponent: ``0.041``, ``3.2``."""
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="k")


# Scores of these methods say nothing about the model: they are what a study compares against.
REFERENCE_METHODS = frozenset({"random", "recency", "popularity", "item_similarity"})

# Beside its strongest event, a side cites what has at least this part of the strongest score.
_WORTH_CITING = 0.1
# "+1.2 of +2.9" is said only where the scores really add up to the change of the target.
_ADDS_UP = 0.05

Kind = Literal["effect", "attention", "reference", "share"]


@dataclass(frozen=True)
class Cited:
    """One event that a sentence names.

    Attributes:
        name: Title or item id, white space tidied.
        behavior: What was done.
        value: Rating or amount, None if there is none.
        score: Its influence.
        seconds_before: How long before the latest event of the history.
        is_latest: It is that event.
    """

    name: str
    behavior: str
    value: float | None
    score: float
    seconds_before: int
    is_latest: bool


@dataclass(frozen=True)
class Account:
    """Everything that may be said.

    Attributes:
        kind: What the scores are: an ``effect`` on the target, a share of ``attention``, the
            weights of a ``reference`` method, or another ``share``.
        method: The method's name.
        in_percent: Scores are shares of a whole.
        unit: What the scores are measured in (`Influence.unit`).
        target: Kind of the target: ``item``, ``behavior``, ``contrast``, ``slate``, ``feedback``,
            ``feedback_value``.
        target_name: The target for people.
        prediction: Its probability; nan where it has none.
        value: Its value with all events.
        recommended: The target is known to be on the list of recommendations.
        events: How many events the history has.
        supporting: The strongest events with a positive score, strongest first.
        opposing: The strongest with a negative score, strongest first.
        balance: Sign of the sum of the scores; None where every score is 0.
        carries: Of everything that supports, the named events are ``all``, ``most``, or the
            ``top``.
        total: The whole that the scores are parts of, None where they do not add up to one.
    """

    kind: Kind
    method: str
    in_percent: bool
    unit: str
    target: str
    target_name: str
    prediction: float
    value: float
    recommended: bool
    events: int
    supporting: tuple[Cited, ...]
    opposing: tuple[Cited, ...]
    balance: int | None
    carries: Literal["all", "most", "top"]
    total: float | None


def account_for(influence: Influence, *, most: int, recommended: bool) -> Account:
    """Choose what to say about an influence.

    Args:
        influence: The explanation.
        most: How many events to name on each side, at most; at least 1.
        recommended: The target is known to be among the user's recommendations.
    """
    scores = np.asarray(influence.scores, dtype=np.float64)
    supporting = _strongest(scores, most)
    opposing = _strongest(-scores, most)
    if len(supporting) and len(opposing):
        worth = _WORTH_CITING * np.abs(scores).max()
        opposing = opposing[-scores[opposing] >= worth] if scores.sum() > 0 else opposing
    return Account(
        kind=_kind(influence),
        method=influence.quality.method,
        in_percent=influence.quality.units == "share",
        unit=influence.unit,
        target=influence.target,
        target_name=tidy(influence.target_name or influence.target_id),
        prediction=influence.prediction,
        value=influence.full_value,
        recommended=recommended,
        events=len(scores),
        supporting=_cite(influence, supporting),
        opposing=_cite(influence, opposing),
        balance=int(np.sign(scores.sum())) if scores.any() else None,
        carries=_carries(scores, supporting),
        total=_total(influence, scores[supporting]),
    )


def tidy(name: str) -> str:
    """A name on one line, without doubled white space."""
    return " ".join(name.split())


def _strongest(scores: FloatArray, most: int) -> IntArray:
    """Places of the highest positive scores, highest first; ties keep the more recent first."""
    order = np.lexsort((-np.arange(len(scores)), -scores))[:most]
    order = order[scores[order] > 0]
    return order[scores[order] >= _WORTH_CITING * scores[order[0]]] if len(order) else order


def _cite(influence: Influence, places: IntArray) -> tuple[Cited, ...]:
    latest = influence.events[-1]
    return tuple(
        Cited(
            name=tidy(event.name),
            behavior=event.behavior,
            value=event.value,
            score=float(influence.scores[place]),
            seconds_before=latest.timestamp - event.timestamp,
            is_latest=int(place) == len(influence.events) - 1,
        )
        for place in places
        for event in (influence.events[place],)
    )


def _kind(influence: Influence) -> Kind:
    if influence.quality.method in REFERENCE_METHODS:
        return "reference"
    if influence.quality.units == "target":
        return "effect"
    return "attention" if influence.quality.method.startswith("attention") else "share"


def _carries(scores: FloatArray, named: IntArray) -> Literal["all", "most", "top"]:
    positive = scores[scores > 0]
    if len(positive) == len(named):
        return "all"
    return "most" if 2 * scores[named].sum() > positive.sum() else "top"


def _total(influence: Influence, named: FloatArray) -> float | None:
    total = influence.full_value - influence.base_value
    adds_up = (
        influence.quality.units == "target"
        and influence.quality.completeness_gap <= _ADDS_UP
        and len(named) > 0
        and named.max() <= total
    )
    return total if adds_up else None


def card_words(influence: Influence) -> list[str]:
    """What the card says, a phrase each; what was not measured is not mentioned."""
    card = influence.quality
    words = [
        f"removal {card.removal}",
        f"completeness gap {completeness_words(influence)}",
        _evaluations(card.evaluations),
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
    if card.card_evaluations:
        words.append(f"{_evaluations(card.card_evaluations)} for this card")
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


def _evaluations(count: int) -> str:
    return f"{count} pass" if count == 1 else f"{count} evaluations"
