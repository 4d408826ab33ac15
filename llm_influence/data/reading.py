"""Reading the arrays of a log: columns are checked and coded, events sorted into histories.

Columns become arrays one at a time, and those of the table are freed, so that memory stays near the
size of the result. Events are sorted by user, time and row of the file, as integer codes. One sort
of a 64-bit key (user and second) does nearly all the work; few events remain tied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
    check_rows,
    encode,
    locate,
    read_values,
    row_of,
    with_key,
)
from llm_influence.data.times import Times, read_times
from llm_influence.errors import DataError, DuplicateError, choices, out_of_range
from llm_influence.types import CodeNames

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
LARGEST = np.iinfo(np.int64).max
POLICIES = ("error", "drop", "keep")


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
) -> dict[str, Any]:
    """The fields of a `BehaviorLog` by name; arguments and errors are those of its `read`."""
    if duplicates not in POLICIES:
        raise out_of_range(DataError, "duplicates", duplicates, expected=choices(POLICIES))
    catalogue = None
    if items is not None:
        catalogue = read_catalogue(
            items, columns=columns, item_text=item_text, item_title=item_title
        )
    where = describe(source)
    users, times, fields = _read_columns(
        source, catalogue, columns, default_behavior, timezone, where
    )
    order = sort_events(users, times)
    if duplicates != "keep":
        codes = (fields["items"], fields["behaviors"])
        repeats, leaders = find_duplicates(order, users, times, *codes)
        if len(repeats) and duplicates == "error":
            raise _duplicate_error(repeats, leaders, users, fields, where)
        order = order[~np.isin(order, repeats)] if len(repeats) else order
    for name in ("items", "behaviors", "values", "labels"):
        fields[name] = None if fields[name] is None else fields[name][order]
    fields["timestamps"] = times.seconds[order]
    fields["offsets"] = np.searchsorted(users[order], np.arange(len(fields["user_ids"]) + 1))
    return fields


def _read_columns(
    source: object,
    catalogue: Catalogue | None,
    columns: Columns | None,
    default_behavior: str,
    timezone: str | None,
    where: str,
) -> tuple[Codes, Times, dict[str, Any]]:
    """User codes, times, and the other fields of a log, in the order of the file."""
    mapping = check_mapping(columns)
    table = read_table(
        source,
        where=where,
        text=[mapping.get(name, name) for name in ("user_id", "item_id", "behavior")],
        numbers=[mapping.get(name, name) for name in ("timestamp", "value", "label")],
        select=lambda names: list(dict.fromkeys(locate(names, mapping, where=where).values())),
    )
    check_rows(table, where, "log")
    own = locate(table.column_names, mapping, where=where)
    waiting = {name: table[column] for name, column in own.items()}
    del table

    def encoded(name: str) -> tuple[Codes, pa.StringArray]:
        return encode(waiting.pop(name), name=own[name], where=where)

    def numbers(name: str) -> npt.NDArray[np.float32]:
        return read_values(waiting.pop(name), name=own[name], where=where)

    users, user_ids = encoded("user_id")
    items, item_ids = encoded("item_id")
    if catalogue is None:
        catalogue = Catalogue.from_ids(item_ids)
    else:
        items = _item_codes(items, item_ids, catalogue, own["item_id"], where)
    behaviors, names = np.zeros(len(users), np.int32), pa.array([default_behavior])
    if "behavior" in own:
        behaviors, names = encoded("behavior")
    fields = {
        "user_ids": user_ids,
        "items": items,
        "behaviors": behaviors,
        "values": numbers("value") if "value" in own else np.full(len(users), np.nan, np.float32),
        "labels": numbers("label") if "label" in own else None,
        "catalogue": catalogue,
        "code_names": CodeNames(catalogue.ids, tuple(names.to_pylist())),
    }
    moments = waiting.pop("timestamp")
    times = read_times(moments, timezone=timezone, name=own["timestamp"], where=where)
    return users, times, fields


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
    table = read_table(items, where=where, text=keys, numbers=())
    return Catalogue.from_table(
        table, item_text=item_text, item_title=item_title, columns=columns, where=where
    )


def read_users(
    users: object, user_ids: pa.StringArray, *, columns: Columns | None = None
) -> pa.Table:
    """(U rows) the features of ``user_ids`` as text, "" for users not in the table."""
    where = describe(users)
    keys = ("user_id", check_mapping(columns).get("user_id", "user_id"))
    table = read_table(users, where=where, text=keys, numbers=())
    table = with_key(table, "user_id", columns, where)
    rows = pc.index_in(user_ids, value_set=table["user_id"])
    names = [name for name in table.column_names if name != "user_id"]
    texts = {name: as_text(table[name], name=name, where=where) for name in names}
    known = {name: text.take(rows).fill_null("") for name, text in texts.items()}
    return pa.table({name: text.combine_chunks() for name, text in known.items()})


def _item_codes(
    codes: npt.NDArray[np.int32], ids: pa.StringArray, catalogue: Catalogue, name: str, where: str
) -> npt.NDArray[np.int32]:
    """Item codes of the log as places in the item table; the error names the first unknown one."""
    recoded = catalogue.find(ids)[codes]
    if (recoded < 0).any():
        row = int(np.argmax(recoded < 0))
        item = ids[int(codes[row])].as_py()
        raise catalogue.unknown(item, where=row_of(where, row, name))
    return recoded


def sort_events(users: Codes, times: Times) -> Rows:
    """(N,) rows in the order of user, time and row, of N events."""
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
    """Places equal to a neighbour."""
    tied = np.zeros(len(same_as_next) + 1, dtype=bool)
    tied[1:] = same_as_next
    tied[:-1] |= same_as_next
    return np.flatnonzero(tied)


def find_duplicates(
    order: Rows, users: Codes, times: Times, items: Codes, behaviors: Codes
) -> tuple[Rows, Rows]:
    """Events that repeat the user, item, behaviour and time of an earlier row.

    ``order`` is that of `sort_events`; all arrays are (N,). Returns the repeated rows (D,),
    ascending, and the first row of each (D,).
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


def _duplicate_error(
    repeats: Rows, leaders: Rows, users: Codes, fields: dict[str, Any], where: str
) -> DuplicateError:
    row, names = int(repeats[0]), fields["code_names"]
    event = (
        f"user {fields['user_ids'][int(users[row])]}, "
        f"item {names.items[int(fields['items'][row])]}, "
        f"behaviour {names.behaviors[fields['behaviors'][row]]}"
    )
    return DuplicateError(
        f"rows {leaders[0] + 1} and {row + 1} hold the same event ({event}); "
        f"{len(repeats):,} in all repeat an earlier one",
        where=where,
        expected="every (user, item, behaviour, time) once",
        fix="pass duplicates='drop' to keep the first of each, or 'keep' if all of them happened",
    )
