"""Columns of an `InfluenceView` in SQL, and the ranges and calendar windows that cut them.

Sums are exact: floating-point sums depend on the order of rows, and a database adds in any order.
`exact_sum` rounds each number to a multiple of 2^-40 (an error below 1e-12) and adds 128-bit
integers, so that the result is the same in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.readers import read_table
from llm_influence.data.schema import as_text, is_text, with_key
from llm_influence.errors import ConfigError, DataError, choices, out_of_range
from llm_influence.influence.table import SCHEMA
from llm_influence.influence.table_files import SIDE_TABLES
from llm_influence.types import IntArray

MINUTE, HOUR, DAY = 60, 3_600, 86_400
SESSION_GAP = 30 * MINUTE  # a longer pause starts a new session
UNITS_IN_ONE = 2**40  # resolution of exact sums, which may be as large as 1e26


def sql_text(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """A quoted column name."""
    return '"' + name.replace('"', '""') + '"'


def exact_sum(number: str, where: str | None = None) -> str:
    """SQL of a sum that does not depend on the order of rows; null without rows.

    ``number`` is an expression over a row: null is skipped, nan and infinity are not allowed.
    ``where`` is a condition of the rows to add.
    """
    chosen = f" FILTER ({where})" if where else ""
    return f"(sum((({number}) * {UNITS_IN_ONE})::HUGEINT){chosen}::DOUBLE / {UNITS_IN_ONE})"


def exact_mean(number: str) -> str:
    """SQL of the mean of a numeric expression where it is not null; see `exact_sum`."""
    return f"({exact_sum(number)} / count({number}))"


@dataclass(frozen=True, slots=True)
class Buckets:
    """Named ranges of a number; the last range has no upper edge."""

    edges: tuple[int, ...]  # (K,) lower edges, increasing
    labels: tuple[str, ...]  # (K,) names of the ranges
    missing: str | None = None  # Name for rows without the number; None if every row has one

    @property
    def names(self) -> tuple[str, ...]:
        """All names in order, ``missing`` first."""
        return self.labels if self.missing is None else (self.missing, *self.labels)

    def codes(self, numbers: IntArray) -> IntArray:
        """(N,) places in ``names``; with a ``missing`` name, negative numbers are missing."""
        places = np.searchsorted(np.array(self.edges), numbers, side="right")
        return places - (self.missing is None)

    def sql(self, number: str) -> str:
        """SQL of the name of ``number``'s range."""
        return self._cases(number, [sql_text(name) for name in self.names])

    def codes_sql(self, number: str) -> str:
        """SQL of the place of ``number``'s range in ``names``."""
        return self._cases(number, [str(code) for code in range(len(self.names))])

    def _cases(self, number: str, results: list[str]) -> str:
        none = "NULL" if self.missing is None else results.pop(0)
        cuts = zip(self.edges[1:], results[:-1], strict=True)
        cases = " ".join(f"WHEN {number} < {edge} THEN {result}" for edge, result in cuts)
        return f"CASE WHEN {number} IS NULL THEN {none} {cases} ELSE {results[-1]} END"


def _counted(edges: tuple[int, ...]) -> Buckets:
    """Ranges of a count that starts at 0, with labels that start at 1: ``1``, ``2 to 3``."""
    labels = [
        f"{low + 1}" if high == low + 1 else f"{low + 1} to {high}" for low, high in pairwise(edges)
    ]
    return Buckets(edges, (*labels, f"over {edges[-1]}"))


GAPS = Buckets(
    (0, 1, MINUTE, HOUR, DAY, 7 * DAY, 30 * DAY),
    (
        *("same moment", "under a minute", "under an hour", "under a day", "under a week"),
        *("under a month", "a month or more"),
    ),
    missing="first event",
)
"""Seconds since the previous event."""
RECENCY = _counted((0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200))
"""Number of later events in the history: ``1`` is the latest event."""
AGES = Buckets(
    (0, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 3 * DAY, 7 * DAY, 30 * DAY, 90 * DAY),
    (
        *("under a minute", "1 to 10 minutes", "10 to 60 minutes", "1 to 6 hours"),
        *("6 to 24 hours", "1 to 3 days", "3 to 7 days", "7 to 30 days", "30 to 90 days"),
        "over 90 days",
    ),
)
"""Seconds from the event to the last event of its history."""
SESSIONS = Buckets(
    (0, 1, 2, 4, 10), ("last session", "1 back", "2 to 3 back", "4 to 9 back", "10 or more back")
)
"""Number of sessions that began after the event."""
DAY_PARTS = Buckets(
    tuple(range(0, 24, 4)), tuple(f"{hour:02}:00-{hour + 3:02}:59" for hour in range(0, 24, 4))
)
"""Hour of the day, UTC."""
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MOST_WINDOWS = 200
MOST_DAYS, WEEK = 31, 7
"""By default windows are days for at most `MOST_DAYS` days, then weeks, then months."""
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Windows:
    """W consecutive calendar windows, UTC."""

    kind: str  # ``day``, ``week`` (from Monday), ``month``, or ``N days``
    starts: tuple[date, ...]  # (W,) first day of each window
    sql: str  # SQL of the window's place; ``{0}`` stands for a time in Unix seconds


def windows_of(first: int, last: int, kind: str | None = None) -> Windows:
    """Cut the time between two predictions, in Unix seconds, into windows.

    ``kind`` is ``day``, ``week``, ``month`` or a number of days; None depends on the time span.
    """
    days = first // DAY, last // DAY
    given, span = kind, days[1] - days[0] + 1
    if kind is None:
        kind = "day" if span <= MOST_DAYS else "week" if span <= MOST_DAYS * WEEK else "month"
    if kind == "month":
        begin, end = (EPOCH + timedelta(day) for day in days)
        origin = begin.year * 12 + begin.month - 1
        count = end.year * 12 + end.month - origin
        starts = [date(n // 12, n % 12 + 1, 1) for n in range(origin, origin + count)]
        moment = "make_timestamp({0}::BIGINT * 1000000)"
        sql = f"(year({moment}) * 12 + month({moment}) - {origin + 1})"
    else:
        size, origin = _days_of(kind), days[0]
        if kind == "week":
            origin -= (days[0] + 3) % WEEK  # 1 January 1970 was a Thursday
        count = (days[1] - origin) // size + 1
        places = range(min(count, MOST_WINDOWS))
        starts = [EPOCH + timedelta(origin + size * place) for place in places]
        sql = f"floor(({{0}} - {origin * DAY}) / {size * DAY})"
    if count > MOST_WINDOWS:
        raise ConfigError(
            f"{count:,} windows of a {kind.removesuffix(' days')}",
            where="--window",
            expected=f"at most {MOST_WINDOWS}",
            fix="choose longer windows: --window month",
        )
    if given and len(starts) == 1:
        raise DataError(
            f"all predictions fall into one window, the {kind} from {starts[0]}",
            where="drift",
            expected="at least two windows to compare",
            fix="choose a shorter --window, or explain predictions of other times",
        )
    return Windows(kind, tuple(starts), f"{sql}::INTEGER")


def _days_of(kind: str) -> int:
    if kind in ("day", "week"):
        return 1 if kind == "day" else WEEK
    number = kind.removesuffix(" days")
    if not number.isdecimal() or int(number) < 1:
        expected = choices(("day", "week", "month"), kind) + ", or a number of days"
        raise out_of_range(ConfigError, "--window", kind, expected=expected)
    return int(number)


_NO_GROUP = ("title", "_title", "_text")
"""Columns that name or describe an item, and so do not group items."""


def read_side_tables(
    sources: Sequence[Path], items: Path | None, users: Path | None
) -> tuple[pa.Table, pa.Table]:
    """The item table and the user table, each with its key first; empty where there is no file.

    Numbers become float64, every other column text; empty text becomes null. By default the tables
    are ``items.parquet`` and ``users.parquet`` beside the influence tables.
    """
    tables = []
    for key, given, name in zip(("item_id", "user_id"), (items, users), SIDE_TABLES, strict=True):
        files = beside(sources, name) if given is None else [given]
        read = [_columns(read_table(file, text=(key,)), key, str(file)) for file in files]
        for file, table in zip(files[1:], read[1:], strict=True):
            if not table.equals(read[0]):
                raise DataError(
                    f"differs from {files[0]}",
                    where=str(file),
                    expected="the same table beside all influence tables",
                    fix=f"name the table to use with --{key.removesuffix('_id')}s",
                )
        tables.append(read[0] if read else pa.table({key: pa.array([], pa.string())}))
    return tables[0], tables[1]


def beside(sources: Sequence[Path], name: str) -> list[Path]:
    """Files with this name in the folders of influence tables."""
    folders = dict.fromkeys(place if place.is_dir() else place.parent for place in sources)
    return [folder / name for folder in folders if (folder / name).exists()]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _columns(table: pa.Table, key: str, where: str) -> pa.Table:
    table = with_key(table, key, None, where)
    columns = {key: table[key].cast(pa.string())}
    for name in table.column_names[1:]:
        column = table[name]
        if name in _NO_GROUP or pa.types.is_struct(column.type):
            continue
        if not _is_number(column.type):
            column = as_text(column, name=name, where=where)
            column = pc.if_else(pc.equal(column, ""), None, column)
        try:
            columns[name] = column.cast(pa.float64())
        except pa.ArrowInvalid:
            columns[name] = column
    return pa.table(columns)


_JOINS = {
    "items": "LEFT JOIN items AS i ON i.item_id = r.item_id",
    "users": "LEFT JOIN users AS u ON u.user_id = r.user_id",
    "chosen": "LEFT JOIN items AS chosen ON chosen.item_id = x.chosen",
    "other": "LEFT JOIN items AS other ON other.item_id = x.other",
}
MATCHES = ("target", "other", "neither")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the view."""

    sql: str  # Expression over ``r`` (an event's row) and ``x`` (its explanation)
    needs: tuple[str, ...] = ()  # Columns of the influence table that ``sql`` reads from ``r``
    # Further tables that ``sql`` reads: ``items``, ``users``, ``chosen``, ``other``
    joins: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()  # Its values in order, where they are fixed
    codes: str = ""  # Expression of the value's place in ``levels``
    number: bool = False  # True for numbers; many distinct numbers are cut into ranges


_FROM_END = "(x.events - 1 - r.position)"
_AGE = "(x.last_time - r.timestamp)"
_BACK = "coalesce(len(list_filter(x.session_starts, lambda place: place > r.position)), 0)"
_HOUR = "((r.timestamp // 3600) % 24)"
_WEEKDAY = "((r.timestamp // 86400 + 3) % 7)"  # 1 January 1970 was a Thursday


def _ranges(buckets: Buckets, number: str, need: str) -> Column:
    sql, codes = buckets.sql(number), buckets.codes_sql(number)
    return Column(sql, (need,), levels=buckets.names, codes=codes)


COLUMNS: dict[str, Column] = {
    **{
        field.name: Column(f"r.{field.name}", (field.name,), number=_is_number(field.type))
        for field in SCHEMA
        if field.name not in ("player", "field", "rank")
    },
    "explanation": Column("r.explanation", number=True),
    "user": Column("x.user_code", number=True),
    "events": Column("x.events", number=True),
    "last_time": Column("x.last_time", number=True),
    "from_end": Column(_FROM_END, ("position",), number=True),
    "age_seconds": Column(_AGE, ("timestamp",), number=True),
    "hour": Column(_HOUR, ("timestamp",), number=True),
    "sessions_back": Column(_BACK, ("position",), number=True),
    "gap": _ranges(GAPS, "r.gap_seconds", "gap_seconds"),
    "recency": _ranges(RECENCY, _FROM_END, "position"),
    "age": _ranges(AGES, _AGE, "timestamp"),
    "day_part": _ranges(DAY_PARTS, _HOUR, "timestamp"),
    "weekday": Column(
        f"{list(WEEKDAYS)}[{_WEEKDAY} + 1]", ("timestamp",), levels=WEEKDAYS, codes=_WEEKDAY
    ),
    "session": _ranges(SESSIONS, _BACK, "position"),
}
"""Columns of every influence table. Times are UTC; see `SESSION_GAP` for sessions."""


def _match(own: str, chosen: str, other: str, *results: str) -> str:
    """SQL that compares a column of the event's item with the two items of the target."""
    same, like_other, neither = results
    return (
        f"CASE WHEN {own} IS NULL OR {chosen} IS NULL THEN NULL WHEN {own} = {chosen} THEN {same} "
        f"WHEN {own} = {other} THEN {like_other} ELSE {neither} END"
    )


def side_columns(items: pa.Table, users: pa.Table) -> dict[str, Column]:
    """Columns of the item and user tables: ``item:genres``, ``user:age``, ``match:genres``.

    ``match:genres`` compares the event's item with the items of the target: ``target`` (the same
    genre as the target's item), ``other`` (the same as the item of a contrast), or ``neither``.
    """
    columns: dict[str, Column] = {}
    for name in items.column_names[1:]:
        number = not is_text(items[name].type)
        own, chosen, other = (f"{table}.{sql_name(name)}" for table in ("i", "chosen", "other"))
        columns[f"item:{name}"] = Column(own, ("item_id",), ("items",), number=number)
        places = (own, chosen, other)
        columns[f"match:{name}"] = Column(
            _match(*places, *map(sql_text, MATCHES)),
            ("item_id",),
            ("items", "chosen", "other"),
            levels=MATCHES,
            codes=_match(*places, "0", "1", "2"),
        )
    for name in users.column_names[1:]:
        sql, number = f"u.{sql_name(name)}", not is_text(users[name].type)
        columns[f"user:{name}"] = Column(sql, ("user_id",), ("users",), number=number)
    return columns


def select(columns: Mapping[str, Column], *, parts: bool) -> str:
    """A query that gives these columns of every event, under these names.

    ``parts`` is true if rows are parts of events: they are summed per event first.
    """
    listed = ", ".join(f"{column.sql} AS {sql_name(name)}" for name, column in columns.items())
    needed = sorted({name for column in columns.values() for name in column.needs} - {"position"})
    joined = {name for column in columns.values() for name in column.joins}
    joins = " ".join(sql for name, sql in _JOINS.items() if name in joined)
    source = _summed_parts(needed) if parts else "influence_rows"
    return (
        f"SELECT {listed} FROM {source} AS r JOIN explanations AS x "
        f"ON x.explanation = r.explanation {joins} WHERE r.position IS NOT NULL"
    )


def _summed_parts(needed: Iterable[str]) -> str:
    one = [f"any_value({name}) AS {name}" for name in needed if name != "score"]
    columns = ", ".join(["explanation", "position", *one, f"{exact_sum('score')} AS score"])
    grouped = f"SELECT {columns} FROM influence_rows WHERE position IS NOT NULL"
    return f"({grouped} GROUP BY explanation, position ORDER BY explanation, position)"
