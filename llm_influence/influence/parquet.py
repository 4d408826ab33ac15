"""Influence tables as Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.errors import DataError
from llm_influence.files import write_whole
from llm_influence.influence.schema import SCHEMA, check_columns, check_version, with_schema

SIDE_TABLES = ("items.parquet", "users.parquet")
"""What stands beside the shards of a batch explanation and is no influence table."""
OUTCOMES = "outcomes.parquet"
"""Likewise, where questions were explained: what came after each history."""


def write_table(table: pa.Table, path: Path | str) -> Path:
    """Write an influence table as Parquet, whole or not at all.

    Args:
        table: A table with `SCHEMA`, as `to_arrow` makes it.
        path: The Parquet file; missing folders are created, a file there is replaced.

    Returns:
        The path written.

    Raises:
        SchemaError: A column is missing or of another type.
        OutputError: No permission or no space.
    """
    checked = with_schema(table, "table to write")
    return write_whole(
        Path(path), lambda temporary: pq.write_table(checked, temporary, compression="zstd")
    )


def read_tables(source: Path | str | Sequence[Path | str]) -> pa.Table:
    """Read influence tables into one.

    Args:
        source: A Parquet file, a folder of them (read in order of name, hidden files,
            `SIDE_TABLES` and `OUTCOMES` left aside), or several of either.

    Returns:
        One table with `SCHEMA`; further columns in the files are not read.

    Raises:
        DataError: Nothing is there, or a file is not Parquet.
        SchemaError: A column is missing or of another type, or the schema has another version.
    """
    return pa.concat_tables([_read(file) for file in table_files(source)])


def table_files(source: Path | str | Sequence[Path | str]) -> list[Path]:
    """The files that `read_tables` reads, in its order; no content is looked at.

    Raises:
        DataError: Nothing is there.
    """
    sources = [source] if isinstance(source, (str, Path)) else source
    files = list(chain.from_iterable(_files(Path(place)) for place in sources))
    if not files:
        raise _nothing_there("no path was given", "read_tables")
    return files


def check_file(file: Path) -> None:
    """Refuse a file that is no influence table, by its footer alone.

    Raises:
        DataError: It is not Parquet.
        SchemaError: A column is missing or of another type, or the schema has another version.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error
    check_version(schema, file)
    with_schema(schema.empty_table(), str(file))


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise _nothing_there("no such file or folder", str(place))
    if place.is_file():
        return [place]
    found = sorted(
        file
        for file in place.rglob("*.parquet")
        if file.name not in (*SIDE_TABLES, OUTCOMES)
        and not any(part.startswith(".") for part in file.relative_to(place).parts)
    )
    if not found:
        raise _nothing_there("no .parquet file in this folder", str(place))
    return found


def _nothing_there(found: str, where: str) -> DataError:
    return DataError(
        found,
        where=where,
        expected="an influence table, or a folder of them",
        fix="name the output of a batch explanation, or a file written by write_table",
    )


def _read(file: Path) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            check_version(parquet.schema_arrow, file)
            check_columns(parquet.schema_arrow, str(file))
            return with_schema(parquet.read(columns=SCHEMA.names), str(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"cannot be read as Parquet ({error})",
        where=str(file),
        expected="a Parquet file written by write_table",
        fix="check that the file is complete and may be read",
    )
