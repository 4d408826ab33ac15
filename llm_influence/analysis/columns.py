"""Sums and means in SQL that come out the same to the last digit, whoever adds them up.

The sum of floating-point numbers depends on their order, and the threads of a database finish in
any. Whole multiples of 2^-40 are added without an error, in any order: numbers are rounded to such
(by less than 1e-12, far below what influence is known to) and added up as integers of 128 bits.

What is known of items and users, from the files beside the influence tables or others.

The columns of the view: what each is in SQL, and which tables it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.bins import (
    AGES,
    DAY_PARTS,
    GAPS,
    RECENCY,
    SESSIONS,
    WEEKDAYS,
    Buckets,
    quoted,
)
from llm_influence.data.readers import read_table
from llm_influence.data.schema import as_text, is_text, with_key
from llm_influence.errors import DataError
from llm_influence.influence.table_files import SCHEMA, SIDE_TABLES

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


KEYS = ("item_id", "user_id")
NAMES = ("title", "_title", "_text")
"""Columns that name or spell out an item and so group nothing."""


def read_side_tables(
    sources: Sequence[Path], items: Path | None, users: Path | None
) -> tuple[pa.Table, pa.Table]:
    """The item table and the user table, each with its key first; without rows where there is none.

    Args:
        sources: The influence tables: files, or folders of them.
        items: The item table; default: ``items.parquet`` beside the influence tables.
        users: The user table; default: ``users.parquet`` beside them.

    Raises:
        DataError: A file is missing or damaged, or several influence tables have different ones.
    """
    found = [
        _read(_beside(sources, file) if given is None else [given], key)
        for file, key, given in zip(SIDE_TABLES, KEYS, (items, users), strict=True)
    ]
    return found[0], found[1]


def numbers(table: pa.Table) -> dict[str, bool]:
    """Columns beside the key, and whether each holds numbers, be they written as text."""
    return {name: _is_number(table[name]) for name in table.column_names[1:]}


def _beside(sources: Sequence[Path], file: str) -> list[Path]:
    folders = dict.fromkeys(place if place.is_dir() else place.parent for place in sources)
    return [folder / file for folder in folders if (folder / file).exists()]


def _read(files: list[Path], key: str) -> pa.Table:
    tables = [_columns(read_table(file, text=(key,)), key, str(file)) for file in files]
    for file, table in zip(files[1:], tables[1:], strict=True):
        if not table.equals(tables[0]):
            raise DataError(
                f"differs from {files[0]}",
                where=str(file),
                expected="one and the same table beside all influence tables",
                fix=f"name the one to use with --{key.removesuffix('_id')}s",
            )
    return tables[0] if tables else pa.table({key: pa.array([], pa.string())})


def _columns(table: pa.Table, key: str, where: str) -> pa.Table:
    """The key, numbers as float64, and everything else that can be text, empty text as null."""
    table = with_key(table, key, None, where)
    columns = {key: table[key].cast(pa.string())}
    for name in table.column_names[1:]:
        if name in NAMES or pa.types.is_struct(table[name].type):
            continue
        kind = table[name].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            columns[name] = table[name].cast(pa.float64())
        else:
            columns[name] = _empty_as_null(as_text(table[name], name=name, where=where))
    return pa.table(columns)


def _empty_as_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text, null where it is empty; text that reads as numbers throughout as float64."""
    column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return column


def _is_number(column: pa.ChunkedArray) -> bool:
    return not is_text(column.type)


JOINS = {
    "items": "LEFT JOIN items AS i ON i.item_id = r.item_id",
    "users": "LEFT JOIN users AS u ON u.user_id = r.user_id",
    "chosen": "LEFT JOIN items AS chosen ON chosen.item_id = x.chosen",
    "other": "LEFT JOIN items AS other ON other.item_id = x.other",
}
"""Tables that a column may need beside the rows ``r`` and their explanations ``x``."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the view.

    Attributes:
        sql: Its expression over ``r`` (an event's row) and ``x`` (its explanation).
        needs: Columns of the influence table that ``sql`` reads of ``r``.
        joins: Keys of `JOINS`.
        levels: Its names in order, where they are fixed.
        codes: Then the expression of their places in this order.
        number: It may be a number: with many distinct values it is cut into ranges.
    """

    sql: str
    needs: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    codes: str = ""
    number: bool = False


_OF_EVENTS = [name for name in SCHEMA.names if name not in ("player", "field", "rank")]
_FROM_END = "(x.events - 1 - r.position)"
_AGE = "(x.last_time - r.timestamp)"
_BACK = "coalesce(len(list_filter(x.session_starts, lambda place: place > r.position)), 0)"
_HOUR = "((r.timestamp // 3600) % 24)"
_WEEKDAY = "((r.timestamp // 86400 + 3) % 7)"  # 1 January 1970 was a Thursday


def _ranges(buckets: Buckets, number: str, need: str) -> Column:
    sql, codes = buckets.sql(number), buckets.codes_sql(number)
    return Column(sql, (need,), levels=buckets.names, codes=codes)


def _counts(name: str) -> bool:
    kind = SCHEMA.field(name).type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


COLUMNS: dict[str, Column] = {
    **{name: Column(f"r.{name}", (name,), number=_counts(name)) for name in _OF_EVENTS},
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
"""Columns that every influence table has. All times are UTC; a session ends with a pause of more
than half an hour."""

MATCHES = ("target", "other", "neither")


def side_columns(items: Mapping[str, bool], users: Mapping[str, bool]) -> dict[str, Column]:
    """Columns of the side tables: ``item:genres``, ``user:age``, ``match:genres``.

    ``match`` says whether the event's item shares the column with the target's item (``target``),
    with the item that a contrast holds against it (``other``) or with none of them.

    Args:
        items: Columns of the item table beside `item_id`, and whether they are numbers.
        users: Columns of the user table beside `user_id`, likewise.
    """
    found = {}
    for name, number in items.items():
        own = f"i.{named(name)}"
        found[f"item:{name}"] = Column(own, ("item_id",), ("items",), number=number)
        found[f"match:{name}"] = _match(name)
    for name, number in users.items():
        own = f"u.{named(name)}"
        found[f"user:{name}"] = Column(own, ("user_id",), ("users",), number=number)
    return found


def _match(name: str) -> Column:
    own, chosen, other = (f"{table}.{named(name)}" for table in ("i", "chosen", "other"))
    cases = (
        f"CASE WHEN {own} IS NULL OR {chosen} IS NULL THEN NULL WHEN {own} = {chosen} THEN {{}} "
        f"WHEN {own} = {other} THEN {{}} ELSE {{}} END"
    )
    return Column(
        cases.format(*map(quoted, MATCHES)),
        ("item_id",),
        ("items", "chosen", "other"),
        levels=MATCHES,
        codes=cases.format(0, 1, 2),
    )


def select(columns: Mapping[str, Column], *, parts: bool) -> str:
    """A query that gives these columns of every event.

    Args:
        columns: By the name they get.
        parts: The rows are of parts of events and have to be added up first.
    """
    listed = ", ".join(f"{column.sql} AS {named(name)}" for name, column in columns.items())
    needed = sorted({name for column in columns.values() for name in column.needs} - {"position"})
    wanted = {join for column in columns.values() for join in column.joins}
    joins = " ".join(sql for name, sql in JOINS.items() if name in wanted)
    source = _added_up(needed) if parts else "influence_rows"
    return (
        f"SELECT {listed} FROM {source} AS r JOIN explanations AS x "
        f"ON x.explanation = r.explanation {joins} WHERE r.position IS NOT NULL"
    )


def named(name: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _added_up(needed: Iterable[str]) -> str:
    one = [f"any_value({name}) AS {name}" for name in needed if name != "score"]
    columns = ", ".join(["explanation", "position", *one, f"{total('score')} AS score"])
    grouped = f"SELECT {columns} FROM influence_rows WHERE position IS NOT NULL"
    return f"({grouped} GROUP BY explanation, position ORDER BY explanation, position)"
