"""Sums and means in SQL that come out the same to the last digit, whoever adds them up.

The sum of floating-point numbers depends on their order, and the threads of a database finish in
any. Whole multiples of 2^-40 are added without an error, in any order: numbers are rounded to such
(by less than 1e-12, far below what influence is known to) and added up as integers of 128 bits.
"""

from __future__ import annotations

UNIT = 2**40
"""Of these make one. Sums up to 1e26 fit."""


def total(number: str, where: str | None = None) -> str:
    """SQL of the sum of a numeric expression; null where there is nothing to add.

    Args:
        number: The expression, over a row. Null is left out; it is never nan nor infinite.
        where: Condition of the rows that count; default: all.
    """
    chosen = f" FILTER ({where})" if where else ""
    return f"(sum((({number}) * {UNIT})::HUGEINT){chosen}::DOUBLE / {UNIT})"


def mean(number: str) -> str:
    """SQL of the mean of a numeric expression where it is not null."""
    return f"({total(number)} / count({number}))"
