"""Sorting events into histories: by user, then time, then the order of the file.

All in numpy on integer codes. One sort of one 64-bit key (user and second together) does nearly
all the work; what is still tied is a small rest.

From a source of rows to the arrays of a log: read, check, encode, sort.

Columns are turned into arrays one at a time and the table's own are let go, so that memory stays
near the size of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.readers import describe, read_table
from llm_influence.data.schema import (
    Columns,
    as_text,
    check_mapping,
    encode,
    locate,
    read_values,
    with_key,
)
from llm_influence.data.times import Times, read_times
from llm_influence.errors import DataError, DuplicateError, EmptyLogError, choices

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


POLICIES = ("error", "drop", "keep")


@dataclass(frozen=True, eq=False)
class SortedRows:
    """The arrays of a log (shapes: see `BehaviorLog`)."""

    user_ids: pa.StringArray
    offsets: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    behaviors: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32] | None
    catalogue: Catalogue
    behavior_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _FileRows:
    """The columns of a log as codes, in the order of the file."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    behaviors: npt.NDArray[np.int32]
    times: Times
    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32] | None
    user_ids: pa.StringArray
    catalogue: Catalogue
    behavior_names: tuple[str, ...]


def read_log(
    source: object,
    items: object = None,
    *,
    columns: Columns | None,
    item_text: Sequence[str] | None,
    item_title: str | None,
    default_behavior: str,
    timezone: str | None,
    duplicates: Literal["error", "drop", "keep"],
) -> SortedRows:
    """Read a log into sorted arrays; arguments and errors are those of `BehaviorLog.read`."""
    if duplicates not in POLICIES:
        raise DataError(
            f"duplicates={duplicates!r}",
            where="BehaviorLog.read",
            expected=choices(POLICIES, duplicates),
            fix="choose one of these",
        )
    catalogue = None
    if items is not None:
        catalogue = read_catalogue(
            items, columns=columns, item_text=item_text, item_title=item_title
        )
    where = describe(source)
    rows = _read_rows(source, catalogue, columns, default_behavior, timezone, where)
    return _sort(rows, duplicates, where)


def read_catalogue(
    items: object,
    *,
    columns: Columns | None = None,
    item_text: Sequence[str] | None = None,
    item_title: str | None = None,
) -> Catalogue:
    """The catalogue of an item table; a `Catalogue` passes through."""
    if isinstance(items, Catalogue):
        return items
    where = describe(items)
    keys = ("item_id", check_mapping(columns).get("item_id", "item_id"))
    table = read_table(items, where=where, text=keys)
    return Catalogue.from_table(
        table, item_text=item_text, item_title=item_title, columns=columns, where=where
    )


def read_users(
    users: object, user_ids: pa.StringArray, *, columns: Columns | None = None
) -> pa.Table:
    """(U rows) the features of ``user_ids`` as text, "" for users that the table lacks.

    Raises:
        DuplicateError: A user stands twice in the table.
    """
    where = describe(users)
    keys = ("user_id", check_mapping(columns).get("user_id", "user_id"))
    table = with_key(read_table(users, where=where, text=keys), "user_id", columns, where)
    rows = pc.index_in(user_ids, value_set=table["user_id"])
    names = [name for name in table.column_names if name != "user_id"]
    texts = [as_text(table[name], name=name, where=where) for name in names]
    return pa.table(
        {
            name: text.take(rows).fill_null("").combine_chunks()
            for name, text in zip(names, texts, strict=True)
        }
    )


def _read_rows(
    source: object,
    catalogue: Catalogue | None,
    columns: Columns | None,
    default_behavior: str,
    timezone: str | None,
    where: str,
) -> _FileRows:
    mapping = check_mapping(columns)
    text = [mapping.get(name, name) for name in ("user_id", "item_id", "behavior")]
    table = read_table(
        source,
        where=where,
        text=text,
        select=lambda names: list(dict.fromkeys(locate(names, mapping, where=where).values())),
    )
    if not table.num_rows:
        raise EmptyLogError(
            "the log has no rows",
            where=where,
            expected="at least one event",
            fix="check its source",
        )
    own = locate(table.column_names, mapping, where=where)
    waiting = {name: table[column] for name, column in own.items()}
    del table

    def encoded(name: str) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
        return encode(waiting.pop(name), name=own[name], where=where)

    users, user_ids = encoded("user_id")
    items, item_ids = encoded("item_id")
    if catalogue is None:
        catalogue = Catalogue.from_ids(item_ids)
    else:
        items = _item_codes(items, item_ids, catalogue, own["item_id"], where)
    behaviors, names = np.zeros(len(users), np.int32), pa.array([default_behavior])
    if "behavior" in own:
        behaviors, names = encoded("behavior")
    values = np.full(len(users), np.nan, np.float32)
    if "value" in own:
        values = read_values(waiting.pop("value"), name=own["value"], where=where)
    labels = None
    if "label" in own:
        labels = read_values(waiting.pop("label"), name=own["label"], where=where)
    times = read_times(
        waiting.pop("timestamp"), timezone=timezone, name=own["timestamp"], where=where
    )
    return _FileRows(
        users=users,
        items=items,
        behaviors=behaviors,
        times=times,
        values=values,
        labels=labels,
        user_ids=user_ids,
        catalogue=catalogue,
        behavior_names=tuple(names.to_pylist()),
    )


def _item_codes(
    codes: npt.NDArray[np.int32], ids: pa.StringArray, catalogue: Catalogue, name: str, where: str
) -> npt.NDArray[np.int32]:
    """Item codes of the log turned into places in the item table.

    Raises:
        UnknownNameError: Names the first row whose item the table lacks.
    """
    recoded = catalogue.find(ids)[codes]
    if (recoded < 0).any():
        row = int(np.argmax(recoded < 0))
        item = ids[int(codes[row])].as_py()
        raise catalogue.unknown(item, where=f"{where}, row {row + 1}, column {name!r}")
    return recoded


def _sort(rows: _FileRows, duplicates: str, where: str) -> SortedRows:
    order = sort_events(rows.users, rows.times)
    if duplicates != "keep":
        repeats, leaders = find_duplicates(
            order, rows.users, rows.times, rows.items, rows.behaviors
        )
        if len(repeats) and duplicates == "error":
            raise duplicate_error(repeats, leaders, _event_at(rows, int(repeats[0])), where)
        if len(repeats):
            again = np.zeros(len(order), dtype=bool)
            again[repeats] = True
            order = order[~again[order]]
    return SortedRows(
        user_ids=rows.user_ids,
        offsets=offsets_of(rows.users[order], len(rows.user_ids)),
        items=rows.items[order],
        behaviors=rows.behaviors[order],
        timestamps=rows.times.seconds[order],
        values=rows.values[order],
        labels=None if rows.labels is None else rows.labels[order],
        catalogue=rows.catalogue,
        behavior_names=rows.behavior_names,
    )


def _event_at(rows: _FileRows, row: int) -> str:
    return (
        f"user {rows.user_ids[int(rows.users[row])]}, "
        f"item {rows.catalogue.ids[int(rows.items[row])]}, "
        f"behaviour {rows.behavior_names[rows.behaviors[row]]}"
    )
