"""The quality card, players, kinds of scores, and numbers as text."""

# ruff: noqa: RUF001, RUF002 - typographic signs are meant: these texts are for people.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llm_influence.types import Event, FloatArray

MINUS = "\N{MINUS SIGN}"
BASELINE_METHODS = frozenset({"random", "recency", "popularity", "item_similarity"})
"""Methods whose scores say nothing about the model: a study compares other methods with them."""
UNITS: dict[str, Literal["NDCG", "points"]] = {"slate": "NDCG", "feedback_value": "points"}
"""Units of targets that are not measured in log-odds. Points are those of the label."""


Kind = Literal["effect", "attention", "baseline", "share"]


def signed(score: float) -> str:
    """A score with its sign: ``+1.23``, ``−0.40``, ``+0.0031``, ``0``. NaN is ``–``."""
    if not math.isfinite(score):
        return "–"
    if score == 0:
        return "0"
    size = abs(score)
    if not 1e-6 <= size < 1e6:
        text = f"{size:.1e}"
    else:
        text = f"{size:.2f}" if size >= 0.0995 else _two_digits(size)
    return ("+" if score > 0 else MINUS) + text


def decimals_for(scores: ArrayLike) -> int:
    """Decimals that a column of scores needs: two digits of its largest score, at least 2."""
    largest = float(np.abs(np.asarray(scores, dtype=np.float64)).max(initial=0.0))
    return 2 if largest == 0 else min(max(2, 1 - math.floor(math.log10(largest))), 12)


def aligned(score: float, decimals: int) -> str:
    """A score in a column of equal decimals: ``+1.23``, ``−0.04``, ``0.00``."""
    if not math.isfinite(score):
        return "–"
    digits = f"{abs(score):.{decimals}f}"
    return digits if float(digits) == 0 else ("+" if score > 0 else MINUS) + digits


def column(scores: Sequence[float] | FloatArray, *, share: bool) -> list[str]:
    """(E,) scores as a column of text: equal decimals, or percentages for shares."""
    if share:
        return [percent(score) for score in scores]
    decimals = decimals_for(scores)
    return [aligned(score, decimals) for score in scores]


def percent(share: float) -> str:
    """A probability or share with two digits: ``34%``, ``3.2%``, ``0.041%``. NaN is ``–``.

    Only an exact 0 is ``0%``, only an exact 1 is ``100%``.
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


def correlation(value: float) -> str:
    """A correlation with its sign: ``+0.79``, ``0``. Only an exact 1 is ``+1.00``."""
    cut = math.copysign(min(abs(value), 0.99), value) if 0.99 < abs(value) < 1 else value
    return signed(round(cut, 2))


def _two_digits(value: float) -> str:
    """Two significant digits without an exponent: ``0.041``, ``3.2``."""
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="k")


def tidy(name: str) -> str:
    """A name on one line, without repeated white space."""
    return " ".join(name.split())


def what(event: Event) -> str:
    """The behaviour of an event and its value: ``rate 4``."""
    return event.behavior + ("" if event.value is None else f" {plain(event.value)}")


Key = tuple[str, str, str, str]
"""User, method, target and target id: what identifies an explanation in every run."""


@dataclass(frozen=True, slots=True)
class QualityCard:
    """How an explanation was made and how good it is. Numbers that were not measured are nan.

    Attributes:
        method: Name of the method in the registry.
        removal: What "without this event" means: ``drop``, ``mask`` or ``replace``, or ``none`` for
            methods that remove nothing.
        units: ``target`` where scores have the target's unit (`Influence.unit`), ``share`` where
            they are shares of a whole.
        completeness_gap: ``|sum of scores - (full - base)| / |full - base|``; 0 is perfect. Only
            methods with units ``target`` promise anything about it.
        evaluations: Model evaluations of the method; a backward pass counts as one.
        seed: Seed of the random numbers.
        left_out: Older events that did not fit the context and got no influence.
        largest_standard_error: Largest of `Influence.standard_errors`, for methods that sample.
        converged: Whether an iterative method reached its tolerance; None for all others.
        lds: Linear fidelity (linear datamodeling score): Spearman correlation, over held-out
            random sets of events, of the target with only those events and the sum of their scores.
        fidelity_masks: Number of these sets; short histories have fewer than requested.
        agreement: Spearman correlation of the scores with those of a second method.
        agreement_with: The second method; empty where there was none.
        card_evaluations: Model evaluations spent on this card, not counted in ``evaluations``.
        bfloat16_error: Largest difference between bfloat16 and float32 of a value of the target, on
            a sample of the histories explained together; nan where float32 was used.
    """

    method: str
    removal: str
    units: Literal["target", "share"]
    completeness_gap: float
    evaluations: int
    seed: int
    left_out: int
    largest_standard_error: float = math.nan
    converged: bool | None = None
    lds: float = math.nan
    fidelity_masks: int = 0
    agreement: float = math.nan
    agreement_with: str = ""
    card_evaluations: int = 0
    bfloat16_error: float = math.nan

    def words(self) -> list[str]:
        """The card in short phrases, without the numbers that were not measured."""
        share = self.units == "share"
        words = [
            f"removal {self.removal}",
            f"completeness gap {'not promised' if share else percent(self.completeness_gap)}",
            _evaluations(self.evaluations),
            f"seed {self.seed}",
        ]
        if not math.isnan(self.largest_standard_error):
            words.append(f"standard errors up to {plain(self.largest_standard_error)}")
        if not math.isnan(self.bfloat16_error):
            words.append(f"read in bfloat16, off by up to {plain(self.bfloat16_error)}")
        if self.converged is not None:
            words.append("converged" if self.converged else "did not converge")
        if not math.isnan(self.lds):
            words.append(f"linear fidelity {correlation(self.lds)} on {self.fidelity_masks} sets")
        if not math.isnan(self.agreement):
            words.append(f"agreement with {self.agreement_with} {correlation(self.agreement)}")
        if self.card_evaluations:
            words.append(f"{_evaluations(self.card_evaluations)} for this card")
        return words


class Player(NamedTuple):
    """The owner of a score, where that is not simply an event.

    Attributes:
        event: Place of the event among the events; None for the user's features.
        field: Part of the event (``behavior``, ``item``, ``gap``, ``value``...), None for the whole
            of it; ``user`` for the user's features.
    """

    event: int | None
    field: str | None = None


USER = Player(None, "user")
"""The user's features, all together."""


def score_kind(method: str, units: str) -> Kind:
    """What scores of a method are: an effect, shares of attention or other shares, a baseline."""
    if method in BASELINE_METHODS:
        return "baseline"
    if units == "target":
        return "effect"
    return "attention" if method.startswith("attention") else "share"


def _evaluations(count: int) -> str:
    return f"{count} evaluation{'' if count == 1 else 's'}"
