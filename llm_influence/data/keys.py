"""The key columns of item and user tables, and near names for messages."""

from __future__ import annotations

import difflib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.schema import (
    Columns,
    as_text,
    check_id_type,
    check_mapping,
    check_no_nulls,
    empty_cell,
    locate,
)
from llm_influence.errors import DuplicateError, EmptyLogError


def with_key(table: pa.Table, key: str, columns: Columns | None, where: str) -> pa.Table:
    """An item or user table with its key as text in the first column, under the contract's name.

    Args:
        table: One row an item or user.
        key: The contract's name of the key, `item_id` or `user_id`.
        columns: May map the key to the table's own name; used if there is a column of that name.
        where: What messages call the table.

    Raises:
        SchemaError: The key column is missing, of another type, or has an empty cell.
        DuplicateError: A key stands twice.
        EmptyLogError: The table has no rows.
    """
    own = check_mapping(columns).get(key, key)
    mapping = {key: own} if own in table.column_names else None
    found = locate(table.column_names, mapping, where=where, required=(key,), optional=())[key]
    if not table.num_rows:
        raise EmptyLogError(
            "the table has no rows",
            where=where,
            expected=f"one row a {key}",
            fix="check its source",
        )
    check_id_type(table[found].type, name=found, where=where)
    check_no_nulls(table[found], name=found, where=where)
    ids = as_text(table[found], name=found, where=where)
    blank = pc.index(ids, "").as_py()  # how CSV files write a missing id
    if blank >= 0:
        raise empty_cell(found, blank, where)
    check_distinct(ids.combine_chunks(), name=key, where=where)
    rest = table.drop_columns([name for name in table.column_names if name in (found, key)])
    return rest.add_column(0, key, ids)


def check_distinct(ids: pa.Array, *, name: str, where: str) -> None:
    """Refuse an id that stands in two rows.

    Raises:
        DuplicateError: Names the id and both rows.
    """
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    codes = ids.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    again = int(np.setdiff1d(np.arange(len(codes)), first)[0])
    raise DuplicateError(
        f"{name} {ids[again].as_py()!r} stands in rows {int(first[codes[again]]) + 1} "
        f"and {again + 1}",
        where=where,
        expected=f"every {name} once",
        fix="remove the row that is wrong",
    )


def nearest(names: pa.StringArray, wrong: str, look_at: int = 5000) -> str:
    """' (did you mean ...?)' or ''; of very many names only some that start alike are looked at."""
    if len(names) > look_at:
        names = names.filter(pc.starts_with(names, wrong[:2]))[:look_at]
    near = difflib.get_close_matches(wrong, names.to_pylist(), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
