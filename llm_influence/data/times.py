"""Reading times: seconds, Arrow timestamps or ISO 8601 text, all vectorised.

Times keep their full precision until the events are sorted, then whole seconds remain. So two
clicks in one second stay in the order in which they happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.schema import check_no_nulls, first_failure, is_text, row_of
from llm_influence.errors import ConfigError, TimestampError, out_of_range
from llm_influence.types import IntArray

LAST_SECOND = 10**11
"""Seconds of the year 5138: a larger number was meant as milliseconds or finer."""

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
FINER = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
ZONED, LOCAL = pa.timestamp("us", "UTC"), pa.timestamp("us")
ZONE = r"[T ]\d{2}.*(Z|[+-]\d{2}:?(\d{2})?)$"
NUMBER = r"^[+-]?\d+(\.\d*)?$"
MOMENT = "an ISO time with a zone, such as 2024-05-01T00:00:00Z"


@dataclass(frozen=True, eq=False)
class Times:
    """Times of N events in UTC: (N,) ticks since 1970, so many per second."""

    ticks: npt.NDArray[np.int64]
    per_second: int

    @property
    def seconds(self) -> npt.NDArray[np.int64]:
        """(N,) whole seconds, rounded down."""
        return self.ticks if self.per_second == 1 else self.ticks // self.per_second


def read_times(
    column: pa.ChunkedArray, *, timezone: str | None = None, name: str, where: str
) -> Times:
    """N times of a column: seconds (whole or not), Arrow timestamps or dates, or text of either.

    Text is ISO 8601. ``timezone`` is the IANA name of the zone of times without one. An hour that a
    clock change repeats is read as its first pass, a skipped one as the moment of the change.
    """
    check_no_nulls(column, name=name, where=where)
    if is_text(column.type):
        column = _parse(pc.utf8_trim_whitespace(column.cast(pa.large_string())), name, where)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _from_numbers(column, name, where)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
    place = f"{where}, column {name!r}"
    if not pa.types.is_timestamp(column.type):
        expected = "seconds, timestamps or ISO 8601 text"
        fix = "convert the column, or map another with columns={'timestamp': ...}"
        raise TimestampError(f"type {kind} is not a time", where=place, expected=expected, fix=fix)
    if column.type.tz is None:
        column = _localise(column, timezone, place)
    return Times(column.cast(pa.int64()).to_numpy(), PER_SECOND[column.type.unit])


def _parse(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Text as numbers, or as times with or without a zone."""
    if pc.match_substring_regex(column[0:1], NUMBER)[0].as_py():
        _check(column, pa.float64(), name, where)
        whole = first_failure(column, pa.int64()) is None
        return column.cast(pa.int64() if whole else pa.float64())
    zoned = pc.match_substring_regex(column, ZONE).to_numpy()
    if zoned.all() or not zoned.any():
        kind = ZONED if zoned.all() else LOCAL
        _check(column, kind, name, where)
        return column.cast(kind)
    for rows, kind in ((zoned, ZONED), (~zoned, LOCAL)):
        _check(column.filter(pa.array(rows)), kind, name, where, np.flatnonzero(rows))
    first, other = int(np.argmax(zoned)), int(np.argmax(~zoned))
    raise TimestampError(
        f"row {first + 1} has a zone ({column[first].as_py()!r}), "
        f"row {other + 1} has none ({column[other].as_py()!r})",
        where=f"{where}, column {name!r}",
        expected="a zone in all rows or in none",
        fix="write all times with a zone",
    )


def _check(
    column: pa.ChunkedArray, kind: pa.DataType, name: str, where: str, rows: IntArray | None = None
) -> None:
    """Refuse the first text that cannot be cast; ``rows`` are the row numbers of ``column``."""
    row = first_failure(column, kind)
    if row is not None:
        raise TimestampError(
            f"{column[row].as_py()!r} cannot be read as a time",
            where=row_of(where, row if rows is None else int(rows[row]), name),
            expected="ISO 8601 such as 2024-05-01T12:30:00Z, or seconds, alike in all rows",
            fix="correct the cell or remove the row",
        )


def _from_numbers(column: pa.ChunkedArray, name: str, where: str) -> Times:
    numbers = column.to_numpy()
    too_large = ~(np.abs(numbers) < LAST_SECOND)  # also true for NaN
    if too_large.any():
        row = int(np.argmax(too_large))
        size = abs(float(numbers[row]))
        units = [unit for unit, ticks in FINER.items() if size / ticks < LAST_SECOND / 10]
        raise TimestampError(
            f"{numbers[row]} is no time in seconds"
            + (f"; it looks like {units[0]}" if units else ""),
            where=row_of(where, row, name),
            expected="Unix time in seconds",
            fix="divide the column down to seconds, or write it as timestamps",
        )
    if np.issubdtype(numbers.dtype, np.floating):
        return Times(np.floor(numbers * 10**6).astype(np.int64), 10**6)
    return Times(numbers.astype(np.int64, copy=False), 1)


def _localise(column: pa.ChunkedArray, timezone: str | None, place: str) -> pa.ChunkedArray:
    if timezone is None:
        expected = "times with a zone, or the option timezone"
        fix = "pass timezone='UTC', or an IANA name such as timezone='Europe/Berlin'"
        raise TimestampError("the times have no zone", where=place, expected=expected, fix=fix)
    try:
        return pc.assume_timezone(column, timezone, ambiguous="earliest", nonexistent="latest")
    except pa.ArrowInvalid as error:
        found = f"timezone={timezone!r} is not known on this machine"
        expected = "an IANA name such as 'Europe/Berlin'"
        fix = "correct the name, or install the system's tzdata"
        raise TimestampError(found, where=place, expected=expected, fix=fix) from error


def iso(moment: int) -> str:
    """Unix seconds as an ISO time in UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def parse_moment(text: str, option: str, expected: str = MOMENT) -> int:
    """An ISO time with a zone as Unix seconds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise out_of_range(ConfigError, option, text, expected=expected) from error
    if moment.tzinfo is None:
        raise out_of_range(ConfigError, option, text, expected=expected)
    return int(moment.timestamp())


def moment_of(cut: str | float, timestamps: npt.NDArray[np.int64], option: str) -> int:
    """A cut of a log as Unix seconds: an ISO time with a zone, or a quantile of ``timestamps``."""
    expected = f"{MOMENT}, or a number in (0, 1)"
    if isinstance(cut, str):
        return parse_moment(cut, option, expected)
    if not 0 < cut < 1:
        raise out_of_range(ConfigError, option, cut, expected=expected)
    return int(np.quantile(timestamps, cut, method="lower"))
