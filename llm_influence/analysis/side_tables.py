"""What is known of items and users, from the files beside the influence tables or others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.keys import with_key
from llm_influence.data.readers import read_table
from llm_influence.data.schema import as_text, is_text
from llm_influence.errors import DataError
from llm_influence.influence.parquet import SIDE_TABLES

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
