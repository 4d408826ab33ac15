"""`read_table`: one function for tables in files and in memory.

Files: Parquet (a file or a folder), CSV, TSV, JSON lines, RecBole atomic files. In memory: Arrow
tables, pandas and polars frames, a Hugging Face `datasets.Dataset`; these libraries are recognised,
never imported. `FORMATS` holds one function for each file format.
"""

from __future__ import annotations

import csv
import io
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

Types = tuple[Sequence[str], Sequence[str] | None]
"""Names of text columns, and of columns whose type is read off their cells (None: all others)."""

BLOCK = 16 * 2**20
"""Bytes read at a time; a line of JSON must fit into one block."""


def read_table(
    source: object,
    *,
    where: str | None = None,
    text: Sequence[str] = ("user_id", "item_id"),
    numbers: Sequence[str] | None = None,
    select: Select = list,
) -> pa.Table:
    """Read a table, in the order of its rows.

    Args:
        source: A path (.parquet, .csv, .tsv, .jsonl, .ndjson, .inter, .item, .user, .kg, .link;
            text files may end in .gz), a folder of Parquet files, an Arrow table, a pandas or
            polars frame, or a `datasets.Dataset`.
        where: Name of the source in messages. Default: its path or type.
        text: Columns of a CSV or TSV file to read as text even if they look like numbers, so that
            the id 007 stays 007.
        numbers: Columns of a CSV or TSV file whose type is read off their cells; all others are
            text then. None: all but ``text``.
        select: Chooses the columns to read; the others use no memory.

    Raises:
        MissingFileError: There is no such file.
        EmptyLogError: The file is empty.
        DataError: The file cannot be read, its format is unknown, or a quote sign is not closed.
    """
    where = where or describe(source)
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), where, (text, numbers), select)
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


def _read_file(path: Path, where: str, types: Types, select: Select) -> pa.Table:
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
        table = reader(path, types, select)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unreadable(error, where) from error
    return _check_utf8(table, where)


def _read_parquet(path: Path, types: Types, select: Select) -> pa.Table:
    import pyarrow.dataset  # here, because it imports pandas where there is one

    # Parquet stores repeated text as dictionaries: keeping them saves most of the memory and time.
    options = pyarrow.dataset.ParquetReadOptions(dictionary_columns=list(types[0]))
    data = pyarrow.dataset.dataset(
        path, format=pyarrow.dataset.ParquetFileFormat(read_options=options), partitioning="hive"
    )
    # Large batches, because each has its own dictionary and joining these costs time.
    return data.to_table(columns=list(select(data.schema.names)), batch_size=2**20)


def _read_delimited(path: Path, types: Types, select: Select, *, delimiter: str) -> pa.Table:
    """A CSV file, in which quotes hold cells together, or a TSV file, which has no quoting."""
    text, numbers = types
    quoted = delimiter == ","

    def read(*, newlines_in_values: bool) -> pa.Table:
        parse = pyarrow.csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=newlines_in_values,
        )
        names = _header(path, parse)
        given = set(text) if numbers is None else set(names) - set(numbers)
        kinds = {name: pa.string() for name in names if name in given}
        return _parse(path, parse, kinds, select(names), pyarrow.csv.ReadOptions(block_size=BLOCK))

    try:
        table = read(newlines_in_values=False)
    except pa.ArrowInvalid:  # perhaps a line break in a quoted cell, which the fast parser refuses
        if not quoted:
            raise
        table = read(newlines_in_values=True)
    if quoted:
        lines, quotes = _lines_and_quotes(path)
        if len(table) != lines - 1 or quotes % 2:
            _check_quotes(path, len(table))
    return table


def _lines_and_quotes(path: Path) -> tuple[int, int]:
    """Lines of a text file, of which the last may lack its line break, and its quote signs."""
    lines, quotes, last = 0, 0, b"\n"
    with pa.input_stream(str(path), compression="detect") as stream:
        while block := stream.read(BLOCK):
            lines, last = lines + block.count(b"\n"), block[-1:]
            quotes += block.count(b'"')
    return lines + (last != b"\n"), quotes


def _check_quotes(path: Path, rows: int) -> None:
    """Read a CSV file again, strictly: its cells hold line breaks, or a quote sign is not closed.

    Without this check a cell that begins with a quote sign takes all rows up to the next one.
    """
    found, start = -1, 1
    with pa.input_stream(str(path), compression="detect") as stream:
        records = csv.reader(io.TextIOWrapper(stream, "utf-8", newline=""), strict=True)
        try:
            for record in records:
                found, start = found + bool(record), records.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"a quote sign that does not enclose a whole cell ({error})",
                where=f"{path}, from line {start} on",
                expected='quotes around whole cells only, and "" for a quote sign inside them',
                fix="correct this line, or save the file with tabs as .tsv, which has no quoting",
            ) from error
    if found != rows:
        raise DataError(
            f"{rows:,} rows were read, and the file has {found:,}",
            where=str(path),
            expected="as many rows as the file has",
            fix="save the file again as UTF-8 with one row a line",
        )


def _read_atomic(path: Path, types: Types, select: Select) -> pa.Table:
    """A RecBole atomic file: tabs, no quotes, a header of ``name:type``."""
    del types  # the header has them
    parse = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    own = dict(_atomic_type(field, path) for field in _header(path, parse))
    names = list(own)
    read = pyarrow.csv.ReadOptions(block_size=BLOCK, column_names=names, skip_rows=1)
    return _parse(path, parse, own, select(names), read)


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


def _read_json(path: Path, types: Types, select: Select) -> pa.Table:
    del types  # JSON has its own
    options = pyarrow.json.ReadOptions(block_size=BLOCK)
    table = pyarrow.json.read_json(path, read_options=options)
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if times:  # Arrow infers times from text and drops their zone: read them as text
        schema = pa.schema([(name, pa.string()) for name in times])
        parse = pyarrow.json.ParseOptions(explicit_schema=schema)
        table = pyarrow.json.read_json(path, read_options=options, parse_options=parse)
    return table.select(list(select(table.column_names)))


FORMATS: dict[str, Callable[[Path, Types, Select], pa.Table]] = {
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
