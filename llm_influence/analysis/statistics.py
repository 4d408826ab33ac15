"""Resampling of users in one pass: every user counts a Poisson number of times.

A mean over users with its interval.

Means and their errors from sums by parts of the users.

Users are dealt into `PARTS` parts. Sums of each part are all that is kept of the events, however
many these are; parts are then the units of standard errors, as users would be: events of a user
stay together.

    m = sum T_p / sum N_p,   V(m) = c sum over parts of (T_p - N_p m)^2 / (sum N_p)^2,
    c = P / (P - 1) with P parts that have events
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_influence.analysis.columns import MATCHES
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import ConfigError, choices
from llm_influence.types import FloatArray, IntArray

LEVEL = 0.95
"""Of every interval."""

_MOST = 12
"""Of a Poisson number of mean 1; larger ones have a chance of 6e-11."""


def user_weights(users: IntArray, resamples: int, seed: int) -> FloatArray:
    """(P, 1 + R) how often each row counts: once in column 0, a Poisson(1) number in the others.

    The bootstrap whose draws do not depend on how many users there are (Hanley and MacGibbon 2006,
    doi:10.1016/j.cmpb.2006.04.006), so sums over a stream can be resampled. A user's number comes
    from the user, the resample and the seed alone, so all rows of a user count alike in any batch.

    Args:
        users: (P,) codes of users.
        resamples: R.
        seed: Of the draws.
    """
    mixed = _mix(users.astype(np.uint64) + _mix(np.full(1, seed, dtype=np.uint64)))
    draws = _mix(mixed[:, None] + _mix(np.arange(1, resamples + 1, dtype=np.uint64)))
    chances = (draws >> np.uint64(11)).astype(np.float64) / 2**53
    numbers = np.searchsorted(stats.poisson(1).cdf(np.arange(_MOST)), chances, side="right")
    return np.column_stack([np.ones(len(users)), numbers.astype(np.float64)])


def _mix(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014): a stream of hashed counters."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def mean_of(values: FloatArray) -> Mean:
    """The mean of (n,) values, one a user, with Student's t interval; nan ends for one user."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Mean(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Mean(mean, mean - half, mean + half)


PARTS = 100
LEAST_PARTS = 10
"""Fewer, which is fewer users still, say nothing that can be relied upon."""


def speaking(view: InfluenceView, match: str | None, side: str = "side") -> str:
    """SQL of what an event's score counts for: itself, or what it says for the target.

    An event that matches the target counts as it is, one that matches the contrast's other item
    with its sign turned, any other not at all (null).

    Args:
        view: The tables.
        match: A column ``match:...``; None counts every event as it is.
        side: What the column is called in the query.

    Raises:
        ConfigError: It is another column.
        DataError: There is no such column.
    """
    if match is None:
        return "1"
    view.select(match)
    if view.columns[match].levels != MATCHES:
        raise ConfigError(
            f"{match!r} does not say which item an event matches",
            where="--match",
            expected=choices([name for name in view.columns if name.startswith("match:")]),
            fix="name a column match:NAME, where NAME is a column of the item table",
        )
    return f"CASE {side} WHEN 'target' THEN 1 WHEN 'other' THEN -1 END"


def occupied(events: FloatArray) -> IntArray:
    """(...) how many of the P parts have events, of (P, ...) counts."""
    found: IntArray = (events > 0).sum(axis=0)
    return found


def means(totals: FloatArray, events: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means and standard errors of (P, ...) sums; nan where nothing can be said.

    Returns:
        (...) means, nan without events; (...) errors, nan with fewer than two parts.
    """
    total, count = totals.sum(axis=0), events.sum(axis=0)
    middle = divide(total, count)
    squares = ((totals - events * np.nan_to_num(middle)) ** 2).sum(axis=0)
    return middle, np.sqrt(correction(occupied(events)) * squares) * divide(1.0, count)


def correction(parts: IntArray | int) -> FloatArray:
    """What the number of parts adds to a variance; nan for fewer than two."""
    return np.where(np.asarray(parts) > 1, parts / np.maximum(np.asarray(parts) - 1, 1), np.nan)


def critical(parts: IntArray | int) -> FloatArray:
    """Half the width of a 95% interval, in standard errors: Student's t over parts."""
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, np.maximum(np.asarray(parts) - 1, 1)))


def half_widths(errors: FloatArray, parts: IntArray) -> FloatArray:
    """(...) half the widths of 95% intervals; nan with fewer than `LEAST_PARTS` parts."""
    return np.where(parts >= LEAST_PARTS, errors * critical(parts), np.nan)


def p_value(value: float, error: float, parts: int) -> float:
    """Of the value being zero; nan where the error is not known."""
    if not error > 0:
        return float("nan") if np.isnan(error) or value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, max(parts - 1, 1)))


def divide(above: FloatArray | float, below: FloatArray) -> FloatArray:
    """The quotient, nan where ``below`` is zero."""
    shape = np.broadcast_shapes(np.shape(above), np.shape(below))
    return np.divide(above, below, out=np.full(shape, np.nan), where=np.asarray(below) > 0)
