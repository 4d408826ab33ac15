"""Sorting events into histories: by user, then time, then the order of the file.

All in numpy on integer codes. One sort of one 64-bit key (user and second together) does nearly
all the work; what is still tied is a small rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_influence.data.times import Times
from llm_influence.errors import DuplicateError

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
LARGEST = np.iinfo(np.int64).max


def sort_events(users: Codes, times: Times) -> Rows:
    """The rows in the order (user, time, row).

    Args:
        users: (N,) user codes.
        times: N times.

    Returns:
        (N,) int64 row numbers from 0.
    """
    seconds = times.seconds
    first = int(seconds.min())
    span = int(seconds.max()) - first + 1
    if int(users.max()) + 1 > LARGEST // span:
        return np.lexsort((times.ticks, users))
    key = users.astype(np.int64)
    key *= span
    key += seconds
    key -= first
    order = np.argsort(key)  # not stable, but far faster than the stable sorts
    key = key[order]
    tied = _tied(key[1:] == key[:-1])
    rows = order[tied]
    order[tied] = rows[np.lexsort((rows, times.ticks[rows], key[tied]))]
    return order


def _tied(same_as_next: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Places that are equal to a neighbour."""
    tied = np.zeros(len(same_as_next) + 1, dtype=bool)
    tied[1:] = same_as_next
    tied[:-1] |= same_as_next
    return np.flatnonzero(tied)


def find_duplicates(
    order: Rows, users: Codes, times: Times, items: Codes, behaviors: Codes
) -> tuple[Rows, Rows]:
    """Events that repeat an earlier row's user, item, behaviour and time.

    Args:
        order: (N,) the sorted rows.
        users: (N,) user codes; like all columns in the order of the file.
        times: N times.
        items: (N,) item codes.
        behaviors: (N,) behaviour codes.

    Returns:
        The repeating rows (D,), ascending, and for each the first row that it repeats (D,).
    """
    same = (users[order[1:]] == users[order[:-1]]) & (
        times.ticks[order[1:]] == times.ticks[order[:-1]]
    )
    if not same.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = order[_tied(same)]
    columns = (behaviors, items, times.ticks, users)
    rows = rows[np.lexsort((rows, *(column[rows] for column in columns)))]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = np.any([column[rows[1:]] != column[rows[:-1]] for column in columns], axis=0)
    leaders = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    repeats, leaders = rows[~new], leaders[~new]
    by_row = np.argsort(repeats)
    return repeats[by_row], leaders[by_row]


def duplicate_error(repeats: Rows, leaders: Rows, event: str, where: str) -> DuplicateError:
    """The error that names the first repeated event, to be raised."""
    return DuplicateError(
        f"rows {leaders[0] + 1} and {repeats[0] + 1} hold the same event ({event}); "
        f"{len(repeats):,} in all repeat an earlier one",
        where=where,
        expected="every (user, item, behaviour, time) once",
        fix="pass duplicates='drop' to keep the first of each, or 'keep' if all of them happened",
    )


def offsets_of(users: Codes, num_users: int) -> Rows:
    """(U+1,) where each user's events start in the sorted order, and the end."""
    offsets = np.zeros(num_users + 1, dtype=np.int64)
    np.cumsum(np.bincount(users, minlength=num_users), out=offsets[1:])
    return offsets
