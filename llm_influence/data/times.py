"""Reading the times of a log: seconds, Arrow timestamps or ISO 8601 text, all vectorised.

Times keep their full precision until the events are sorted, then whole seconds remain: two clicks
in one second stay in the order in which they happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.schema import check_no_nulls, first_failure, is_text, row_of
from llm_influence.errors import TimestampError

LAST_SECOND = 10**11
"""Seconds of the year 5138: a larger number was meant as milliseconds or finer."""

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ZONE = r"[T ]\d{2}.*(Z|[+-]\d{2}:?(\d{2})?)$"
NUMBER = r"^[+-]?\d+(\.\d*)?$"


@dataclass(frozen=True, eq=False)
class Times:
    """Times of N events, in UTC.

    Attributes:
        ticks: (N,) int64 since 1970.
        per_second: How many ticks a second has.
    """

    ticks: npt.NDArray[np.int64]
    per_second: int

    @property
    def seconds(self) -> npt.NDArray[np.int64]:
        """(N,) whole seconds, rounded down."""
        return self.ticks if self.per_second == 1 else self.ticks // self.per_second


def read_times(
    column: pa.ChunkedArray, *, timezone: str | None = None, name: str, where: str
) -> Times:
    """Read a time column.

    Args:
        column: (N,) seconds (whole or not), Arrow timestamps or dates, ISO 8601 text, or text of
            seconds.
        timezone: IANA name of the zone of times written without one. An hour that a clock change
            repeats is read as its first pass, one that it skips as the moment of the change.
        name: The column's own name, for messages.
        where: The file or object, for messages.

    Raises:
        SchemaError: A cell is empty.
        TimestampError: A time cannot be read, is too large to be seconds, lacks a zone, or times
            with and without a zone are mixed.
    """
    check_no_nulls(column, name=name, where=where)
    kind = column.type
    if is_text(kind):
        return _from_text(column.cast(pa.large_string()), timezone, name, where)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _from_numbers(column, name, where)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
    if pa.types.is_timestamp(column.type):
        return _from_timestamps(column, timezone, name, where)
    raise TimestampError(
        f"type {kind} is not a time",
        where=f"{where}, column {name!r}",
        expected="seconds, timestamps or ISO 8601 text",
        fix="turn the column into one of these, or map another with columns={'timestamp': ...}",
    )


def _from_numbers(column: pa.ChunkedArray, name: str, where: str) -> Times:
    numbers = column.to_numpy()
    absurd = ~(np.abs(numbers) < LAST_SECOND)  # also true of NaN
    if absurd.any():
        row = int(np.argmax(absurd))
        raise TimestampError(
            f"{numbers[row]} is no time in seconds{_unit_of(abs(float(numbers[row])))}",
            where=row_of(where, row, name),
            expected="Unix time in seconds",
            fix="divide the column down to seconds, or write it as timestamps",
        )
    if np.issubdtype(numbers.dtype, np.floating):
        return Times(np.floor(numbers * 10**6).astype(np.int64), 10**6)
    return Times(numbers.astype(np.int64, copy=False), 1)


def _unit_of(size: float) -> str:
    for unit, ticks in (("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)):
        if size / ticks < LAST_SECOND / 10:
            return f"; it looks like {unit}"
    return ""


def _from_timestamps(column: pa.ChunkedArray, timezone: str | None, name: str, where: str) -> Times:
    if column.type.tz is None:
        column = _localise(column, timezone, name, where)
    return Times(column.cast(pa.int64()).to_numpy(), PER_SECOND[column.type.unit])


def _localise(
    column: pa.ChunkedArray, timezone: str | None, name: str, where: str
) -> pa.ChunkedArray:
    place = f"{where}, column {name!r}"
    if timezone is None:
        raise TimestampError(
            "the times have no zone",
            where=place,
            expected="times with a zone, or the zone they were written in",
            fix="pass timezone='UTC', or an IANA name such as timezone='Europe/Berlin'",
        )
    try:
        return pc.assume_timezone(column, timezone, ambiguous="earliest", nonexistent="latest")
    except pa.ArrowInvalid as error:
        raise TimestampError(
            f"timezone={timezone!r} is not known on this machine",
            where=place,
            expected="an IANA name such as 'Europe/Berlin'",
            fix="correct the name, or install the system's tzdata",
        ) from error


def _from_text(column: pa.ChunkedArray, timezone: str | None, name: str, where: str) -> Times:
    column = pc.utf8_trim_whitespace(column)
    if pc.match_substring_regex(column[0:1], NUMBER)[0].as_py():
        _check(column, lambda part: part.cast(pa.float64()), name, where)
        whole = first_failure(column, lambda part: part.cast(pa.int64())) is None
        return _from_numbers(column.cast(pa.int64() if whole else pa.float64()), name, where)
    zoned = pc.match_substring_regex(column, ZONE).to_numpy()
    if zoned.any() and not zoned.all():
        _check(column.filter(pa.array(zoned)), _with_zone, name, where, np.flatnonzero(zoned))
        _check(column.filter(pa.array(~zoned)), _without_zone, name, where, np.flatnonzero(~zoned))
        raise _mixed(column, zoned, name, where)
    convert = _with_zone if zoned.all() else _without_zone
    _check(column, convert, name, where)
    return _from_timestamps(convert(column), timezone, name, where)


def _with_zone(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us", "UTC"))


def _without_zone(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us"))


def _check(
    column: pa.ChunkedArray,
    convert: Callable[[pa.ChunkedArray], pa.ChunkedArray],
    name: str,
    where: str,
    rows: npt.NDArray[np.int64] | None = None,
) -> None:
    """Refuse the first text that ``convert`` cannot read; ``rows`` are the rows of ``column``."""
    row = first_failure(column, convert)
    if row is not None:
        raise TimestampError(
            f"{column[row].as_py()!r} cannot be read as a time",
            where=row_of(where, row if rows is None else int(rows[row]), name),
            expected="ISO 8601 such as 2024-05-01T12:30:00Z, or seconds, alike in all rows",
            fix="correct the cell or remove the row",
        )


def _mixed(
    column: pa.ChunkedArray, zoned: npt.NDArray[np.bool_], name: str, where: str
) -> TimestampError:
    with_zone, without = int(np.argmax(zoned)), int(np.argmax(~zoned))
    return TimestampError(
        f"row {with_zone + 1} has a zone ({column[with_zone].as_py()!r}), "
        f"row {without + 1} has none ({column[without].as_py()!r})",
        where=f"{where}, column {name!r}",
        expected="a zone in all rows or in none",
        fix="write all times with a zone",
    )
