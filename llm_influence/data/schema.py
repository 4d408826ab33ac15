"""The columns of a behaviour log, and checks that a file's own columns fit them.

A log has the columns `user_id`, `item_id` and `timestamp`, and may have `behavior`, `value` and
`label`. The label is an outcome of the event, known only later, so histories never show it.
`columns={"user_id": "customer"}` maps a column to the file's own name. Row numbers in messages
count data rows from 1, without the header.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.errors import DuplicateError, EmptyLogError, SchemaError, check_type, choices

REQUIRED = ("user_id", "item_id", "timestamp")
OPTIONAL = ("behavior", "value", "label")
CONTRACT = REQUIRED + OPTIONAL

STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)

Columns = Mapping[str, str]


def locate(
    names: Sequence[str],
    columns: Columns | None,
    *,
    where: str,
    required: Sequence[str] = REQUIRED,
    optional: Sequence[str] = OPTIONAL,
) -> dict[str, str]:
    """Contract name -> the table's own name, for the columns of the table.

    ``columns`` maps contract names to own names; default: the same names. A column with nearly the
    name of an optional one is an error, because it would otherwise be lost silently.
    """
    columns = check_mapping(columns)
    located: dict[str, str] = {}
    for name in (*required, *optional):
        own = columns.get(name, name)
        if own in names:
            located[name] = own
        elif name in required or name in columns:
            near = _near(own, names, cutoff=0.55)
            found = f"column {own!r} is missing" + (f"; found {near!r}" if near else "")
            expected = f"a column for {name!r} among " + ", ".join(map(repr, names))
            fix = f"map it with columns={{{name!r}: {near or 'the column that holds it'!r}}}"
            raise SchemaError(found, where=where, expected=expected, fix=fix)
    spare = [own for own in names if own not in located.values()]
    for name in optional:
        near = _near(name, spare, cutoff=0.75)
        if name not in located and near:
            found = f"column {near!r} looks like {name!r} and would be left out"
            fix = f"map it with columns={{{name!r}: {near!r}}}, or rename or drop the column"
            raise SchemaError(found, where=where, expected=f"the name {name!r}", fix=fix)
    return located


def check_mapping(columns: Columns | None) -> Columns:
    """The mapping itself, empty for None; its keys must be names of the contract."""
    columns = {} if columns is None else columns
    expected = "a mapping, such as {'user_id': 'customer'}"
    check_type(SchemaError, "columns", columns, Mapping, expected=expected)
    for own in columns.values():
        check_type(SchemaError, "column name", own, str, expected="texts; rename numbered columns")
    for name in columns:
        if name not in CONTRACT:
            found = f"{name!r} is not a column of the contract"
            fix = "write columns={contract name: the file's own name}"
            raise SchemaError(found, where="columns", expected=choices(CONTRACT, name), fix=fix)
    return columns


def encode(
    column: pa.ChunkedArray, *, name: str, where: str
) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    """(N,) codes of a column of names, and the distinct names that occur, sorted as UTF-8 text.

    The column is text, whole numbers or a dictionary (categorical) of them.
    """
    values, indices = _dictionary(column, name, where)
    used = np.bincount(indices, minlength=len(values)) > 0
    order = pc.array_sort_indices(values).to_numpy()
    order = order[used[order]]
    ordered = values.take(pa.array(order))
    # A dictionary may hold a name twice: both places get the same code.
    first = np.ones(len(order), dtype=bool)
    first[1:] = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    rank = np.zeros(len(values), dtype=np.int32)
    rank[order] = np.cumsum(first, dtype=np.int32) - 1
    codes, names = rank[indices], ordered.filter(pa.array(first))
    if len(names) and names[0].as_py() == "":  # an empty cell of a CSV file
        raise _empty_cell(name, int(np.argmax(codes == 0)), where)
    return codes, names


def read_values(column: pa.ChunkedArray, *, name: str, where: str) -> npt.NDArray[np.float32]:
    """(N,) float32 values of a column of numbers, or text that reads as numbers; NaN where null."""
    kind = column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if is_text(kind):
        row = first_failure(column, pa.float64())
        if row is not None:
            raise _not_a_number(repr(column[row].as_py()), row_of(where, row, name))
    elif not (number or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise _not_a_number(f"type {kind}", f"{where}, column {name!r}")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    floats = column.cast(pa.float64()).cast(pa.float32(), safe=False)
    return floats.fill_null(float("nan")).to_numpy()


def as_text(column: pa.ChunkedArray, *, name: str, where: str) -> pa.ChunkedArray:
    """Any column as plain text, null as ""; a list of texts is joined by ", "."""
    try:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.binary_join(column.cast(pa.list_(pa.string())), ", ")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.cast(pa.string()).fill_null("")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        expected, fix = "text, numbers or lists of texts", "drop the column or write it as text"
        raise _wrong_type(column.type, name, where, expected, fix) from error


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the three kinds of string."""
    return any(is_kind(kind) for is_kind in STRINGS)


def check_id_type(kind: pa.DataType, *, name: str, where: str) -> pa.DataType:
    """The type of ids, which must be text or whole numbers: floats would make 1 into "1.0"."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (is_text(inner) or pa.types.is_integer(inner)):
        expected, fix = "text or whole numbers", f"write {name!r} as text"
        raise _wrong_type(kind, name, where, expected, fix)
    return inner


def check_no_nulls(column: pa.ChunkedArray, *, name: str, where: str) -> None:
    """Refuse a key column with a missing cell; the error names its first row."""
    if column.null_count:
        raise _empty_cell(name, int(np.argmax(column.is_null().to_numpy())), where)


def first_failure(column: pa.ChunkedArray, kind: pa.DataType) -> int | None:
    """The first row (from 0) that cannot be cast to a type, None if all can.

    Halves the column until one row is left, so the search costs about one more cast.
    """
    if _casts(column, kind):
        return None
    start, stop = 0, len(column)
    while stop - start > 1:
        middle = (start + stop) // 2
        if _casts(column.slice(start, middle - start), kind):
            start = middle
        else:
            stop = middle
    return start


def row_of(where: str, row: int, name: str) -> str:
    """The place of a cell, for messages; ``row`` counts from 0, the text from 1."""
    return f"{where}, row {row + 1}, column {name!r}"


def _wrong_type(kind: pa.DataType, name: str, where: str, expected: str, fix: str) -> SchemaError:
    return SchemaError(f"column {name!r} has type {kind}", where=where, expected=expected, fix=fix)


def _empty_cell(name: str, row: int, where: str) -> SchemaError:
    found, expected = "the cell is empty", "a value in every row"
    fix = "fill the cell or remove the row"
    return SchemaError(found, where=row_of(where, row, name), expected=expected, fix=fix)


def _casts(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _dictionary(
    column: pa.ChunkedArray, name: str, where: str
) -> tuple[pa.StringArray, npt.NDArray[np.int32]]:
    """One dictionary of texts and the (N,) indices into it, from a column of any id type."""
    inner = check_id_type(column.type, name=name, where=where)
    check_no_nulls(column, name=name, where=where)
    if pa.types.is_string_view(inner):  # Arrow has no dictionary kernels for string views
        plain = pa.dictionary(pa.int32(), pa.large_string())
        dictionary = pa.types.is_dictionary(column.type)
        column = column.cast(plain if dictionary else pa.large_string())
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    else:
        column = column.dictionary_encode()  # one dictionary for all chunks
    indices = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    return column.chunk(0).dictionary.cast(pa.string()), indices.astype(np.int32, copy=False)


def _near(name: str, names: Sequence[str], cutoff: float) -> str | None:
    by_lower = {own.lower(): own for own in names}
    near = difflib.get_close_matches(name, by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


def _not_a_number(cell: str, where: str) -> SchemaError:
    expected = "a number, or an empty cell where the event has no value"
    fix = "correct it, or leave the column out"
    return SchemaError(f"{cell} is not a number", where=where, expected=expected, fix=fix)


def with_key(table: pa.Table, key: str, columns: Columns | None, where: str) -> pa.Table:
    """An item or user table with its ``key`` first, as text and under the contract's name.

    ``columns`` may map the key to the table's own name; it is used if the table has that column.
    """
    own = check_mapping(columns).get(key, key)
    mapping = {key: own} if own in table.column_names else None
    own = locate(table.column_names, mapping, where=where, required=(key,), optional=())[key]
    check_rows(table, where)
    ids = key_texts(table[own], name=own, where=where)
    check_distinct(ids.combine_chunks(), name=key, where=where)
    rest = table.drop_columns([name for name in table.column_names if name in (own, key)])
    return rest.add_column(0, key, ids)


def key_texts(column: pa.ChunkedArray, *, name: str, where: str) -> pa.ChunkedArray:
    """A column of ids as text."""
    check_id_type(column.type, name=name, where=where)
    check_no_nulls(column, name=name, where=where)
    texts = as_text(column, name=name, where=where)
    blank = pc.index(texts, "").as_py()  # an empty cell of a CSV file
    if blank >= 0:
        raise _empty_cell(name, blank, where)
    return texts


def check_rows(table: pa.Table, where: str, what: str = "table") -> None:
    """Refuse a table without rows."""
    if not table.num_rows:
        found, fix = f"the {what} has no rows", "check its source"
        raise EmptyLogError(found, where=where, expected="at least one row", fix=fix)


def check_distinct(ids: pa.Array, *, name: str, where: str) -> None:
    """Refuse an id in two rows; the error names both rows."""
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
    """' (did you mean ...?)' or ''; among many names, only those with the same start count."""
    if len(names) > look_at:
        names = names.filter(pc.starts_with(names, wrong[:2]))[:look_at]
    near = difflib.get_close_matches(wrong, names.to_pylist(), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
