"""`read_table`: one function for tables in files and in memory.

Files: Parquet (a file or a folder), CSV, TSV, JSON lines, RecBole atomic files. In memory: Arrow
tables, pandas and polars frames, a Hugging Face `datasets.Dataset`; these libraries are recognised,
never imported. `FORMATS` holds one function for each file format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from llm_influence.errors import DataError, EmptyLogError, MissingFileError, SchemaError, unreadable

Select = Callable[[Sequence[str]], Sequence[str]]
"""Chooses the columns to read from a table's column names."""

BLOCK = 16 * 2**20
"""Bytes read at a time; a line of JSON must fit into one block."""


def read_table(
    source: object,
    *,
    where: str | None = None,
    text: Sequence[str] = ("user_id", "item_id"),
    select: Select = list,
) -> pa.Table:
    """Read a table, in the order of its rows.

    Args:
        source: A path (.parquet, .csv, .tsv, .jsonl, .ndjson, .inter, .item, .user, .kg, .link;
            text files may end in .gz), a folder of Parquet files, an Arrow table, a pandas or
            polars frame, or a `datasets.Dataset`.
        where: Name of the source in messages. Default: its path or type.
        text: Columns of a CSV file to read as text even if they look like numbers, so that the id
            007 stays 007.
        select: Chooses the columns to read; the others use no memory.

    Raises:
        MissingFileError: There is no such file.
        EmptyLogError: The file is empty.
        DataError: The file cannot be read, or its format is unknown.
    """
    where = where or describe(source)
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), where, text, select)
    table = _from_memory(source, where)
    twice = next((n for n in table.column_names if table.column_names.count(n) > 1), None)
    if twice is not None:
        found, fix = f"column {twice!r} stands twice", "rename or drop one of them"
        raise SchemaError(found, where=where, expected="every column once", fix=fix)
    return table.select(list(select(table.column_names)))


def describe(source: object) -> str:
    """Name of a source in messages: its path, or the type of an object in memory."""
    if isinstance(source, (str, Path)):
        return str(source)
    return f"{type(source).__module__.partition('.')[0]} {type(source).__name__}"


def _read_file(path: Path, where: str, text: Sequence[str], select: Select) -> pa.Table:
    if not path.exists():
        expected = "an existing file or folder"
        raise MissingFileError("no such file", where=where, expected=expected, fix="check the path")
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    reader = _read_parquet if path.is_dir() else FORMATS.get(suffix.lower())
    if reader is None:
        found = f"unknown file format {suffix!r}"
        fix = "convert the file, or read it yourself and pass the pandas or Arrow table"
        raise DataError(found, where=where, expected="one of " + ", ".join(FORMATS), fix=fix)
    try:
        table = reader(path, text, select)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unreadable(error, where) from error
    return _check_utf8(table, where)


def _read_parquet(path: Path, text: Sequence[str], select: Select) -> pa.Table:
    import pyarrow.dataset  # here, because it imports pandas where there is one

    # Parquet stores repeated text as dictionaries: keeping them saves most of the memory and time.
    options = pyarrow.dataset.ParquetReadOptions(dictionary_columns=list(text))
    data = pyarrow.dataset.dataset(
        path, format=pyarrow.dataset.ParquetFileFormat(read_options=options), partitioning="hive"
    )
    # Large batches, because each has its own dictionary and joining these costs time.
    return data.to_table(columns=list(select(data.schema.names)), batch_size=2**20)


def _read_delimited(path: Path, text: Sequence[str], select: Select, *, delimiter: str) -> pa.Table:
    def read(*, newlines_in_values: bool) -> pa.Table:
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=newlines_in_values)
        names = _header(path, parse)
        types = {name: pa.string() for name in text if name in names}
        return _parse(path, parse, types, select(names), pyarrow.csv.ReadOptions(block_size=BLOCK))

    try:
        return read(newlines_in_values=False)
    except pa.ArrowInvalid:  # perhaps a line break in a quoted cell, which the fast parser refuses
        return read(newlines_in_values=True)


def _read_atomic(path: Path, text: Sequence[str], select: Select) -> pa.Table:
    """A RecBole atomic file: tabs, no quotes, a header of ``name:type``."""
    del text  # the header has the types
    parse = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    types = dict(_atomic_type(field, path) for field in _header(path, parse))
    names = list(types)
    read = pyarrow.csv.ReadOptions(block_size=BLOCK, column_names=names, skip_rows=1)
    return _parse(path, parse, types, select(names), read)


def _header(path: Path, parse: pyarrow.csv.ParseOptions) -> list[str]:
    with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
        return list(reader.schema.names)


def _parse(
    path: Path,
    parse: pyarrow.csv.ParseOptions,
    types: dict[str, pa.DataType],
    columns: Sequence[str],
    read: pyarrow.csv.ReadOptions,
) -> pa.Table:
    convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(columns))
    return pyarrow.csv.read_csv(
        path, read_options=read, parse_options=parse, convert_options=convert
    )


def _atomic_type(field: str, path: Path) -> tuple[str, pa.DataType]:
    name, colon, kind = field.rpartition(":")
    # Sequences of floats stay text: no column of a log is such a sequence.
    known = {"token": pa.string(), "float": pa.float64()}
    known |= {"token_seq": pa.string(), "float_seq": pa.string()}
    if not colon or kind not in known:
        expected = "name:type with one of the types " + ", ".join(known)
        fix = "write the header as RecBole does, or name the file .tsv"
        raise SchemaError(f"the header has {field!r}", where=str(path), expected=expected, fix=fix)
    return name, known[kind]


def _read_json(path: Path, text: Sequence[str], select: Select) -> pa.Table:
    del text  # JSON has types of its own
    options = pyarrow.json.ReadOptions(block_size=BLOCK)
    table = pyarrow.json.read_json(path, read_options=options)
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if times:  # Arrow infers times from text and drops their zone: read them as text
        schema = pa.schema([(name, pa.string()) for name in times])
        parse = pyarrow.json.ParseOptions(explicit_schema=schema)
        table = pyarrow.json.read_json(path, read_options=options, parse_options=parse)
    return table.select(list(select(table.column_names)))


FORMATS: dict[str, Callable[[Path, Sequence[str], Select], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    **dict.fromkeys((".inter", ".item", ".user", ".kg", ".link"), _read_atomic),
}


def _from_memory(source: object, where: str) -> pa.Table:
    library = type(source).__module__.partition(".")[0]
    if isinstance(source, pa.Table):
        return source
    try:
        if library == "pandas" and hasattr(source, "to_parquet"):
            return pa.Table.from_pandas(source, preserve_index=False).replace_schema_metadata()
        if library == "datasets" and hasattr(source, "with_format") and hasattr(source, "select"):
            return source.with_format("arrow")[:]
        if hasattr(source, "__arrow_c_stream__") and hasattr(source, "columns"):
            return pa.table(source)
    except (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError) as error:
        raise _unreadable(error, where) from error
    found = f"a {type(source).__name__} is not a table"
    expected = "a path, an Arrow table, a pandas or polars frame, or one datasets.Dataset"
    fix = "collect a lazy frame or stream, or choose one split of a DatasetDict"
    raise DataError(found, where=where, expected=expected, fix=fix)


def _check_utf8(table: pa.Table, where: str) -> pa.Table:
    """Refuse text that is not UTF-8, which Arrow reads as bytes."""
    for field in table.schema:
        if pa.types.is_binary(field.type):
            found = f"column {field.name!r} is not UTF-8 text"
            fix = "save the file as UTF-8, or drop the column"
            raise DataError(found, where=where, expected="UTF-8", fix=fix)
    return table


def _unreadable(error: Exception, where: str) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if reason.startswith("Empty "):
        fix = "check how it was written"
        return EmptyLogError("the file is empty", where=where, expected="rows", fix=fix)
    fix = "correct the file, or read it yourself and pass the pandas or Arrow table"
    return unreadable(DataError, where, reason.rstrip("."), expected="a well-formed table", fix=fix)
