"""Numbers as people read them. Rounded, never rounded to something that is not so."""

# ruff: noqa: RUF001, RUF002 - typographic signs are meant: this file writes for people.

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

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
