"""Files: influence tables as Parquet, one explanation as JSON, and the fairness test."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.errors import ConfigError, DataError, SchemaError, unreadable
from llm_influence.influence.table import (
    OF_EVENTS,
    SCHEMA,
    UNMEASURED,
    VERSION,
    VERSION_KEY,
    Fields,
    check_columns,
    fields_of,
    table_of,
    with_schema,
)
from llm_influence.types import Event
from llm_influence.utils import write_text, write_whole

SIDE_TABLES = ("items.parquet", "users.parquet")
"""Items and users, beside the shards of a batch explanation."""
OUTCOMES = "outcomes.parquet"
"""The event that followed each history, where examples were explained; beside the shards too."""
ERRORS = "errors.parquet"
"""The users that could not be explained, and why; beside the shards too."""
FAIRNESS_TEST = "fairness_test.parquet"
"""The counterfactual fairness test, beside the shards too."""


def write_table(table: pa.Table, path: Path | str) -> Path:
    """Write an influence table as Parquet, whole or not at all.

    Args:
        table: A table with `SCHEMA`, as `to_arrow` makes it.
        path: The Parquet file. Missing folders are created, an existing file is replaced.

    Raises:
        SchemaError: A column is missing or has another type.
        OutputError: The place cannot be written, or the disk is full.
    """
    checked = with_schema(table, "table to write")
    return write_whole(Path(path), partial(pq.write_table, checked, compression="zstd"))


def read_tables(source: Path | str | Sequence[Path | str]) -> pa.Table:
    """Read influence tables into one.

    Args:
        source: A Parquet file, a folder of them, or several of either. Files of a folder are read
            in order of name; hidden files and the tables beside the shards are not read.

    Returns:
        One table with `SCHEMA`. Other columns of the files are not read.

    Raises:
        DataError: Nothing is there, or a file is not Parquet.
        SchemaError: A column is missing or has another type, or the schema has another version.
    """
    return pa.concat_tables([_read(file) for file in table_files(source)])


def table_files(source: Path | str | Sequence[Path | str]) -> list[Path]:
    """The files that `read_tables` reads, in its order, without a look at their content.

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
        SchemaError: A column is missing or has another type, or the schema has another version.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error
    _check_version(schema, file)
    with_schema(schema.empty_table(), str(file))


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise _nothing_there("no such file or folder", str(place))
    if place.is_file():
        return [place]
    files = sorted(
        file
        for file in place.rglob("*.parquet")
        if file.name not in (*SIDE_TABLES, OUTCOMES, ERRORS, FAIRNESS_TEST)
        and not any(part.startswith(".") for part in file.relative_to(place).parts)
    )
    if not files:
        raise _nothing_there("no .parquet file in this folder", str(place))
    return files


def _nothing_there(problem: str, where: str) -> DataError:
    return DataError(
        problem,
        where=where,
        expected="an influence table, or a folder of them",
        fix="name the folder that `llm-influence explain` wrote, or a file of write_table",
    )


def _read(file: Path) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            _check_version(parquet.schema_arrow, file)
            check_columns(parquet.schema_arrow, str(file))
            return with_schema(parquet.read(columns=SCHEMA.names), str(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _check_version(schema: pa.Schema, file: Path) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY)
    if version != VERSION.encode():
        raise SchemaError(
            f"schema version {version.decode()!r}" if version else "no schema version",
            where=str(file),
            expected=f"'{VERSION_KEY.decode()}': {VERSION!r} in the file's metadata",
            fix="explain again with this version of llm_influence",
        )


def _unreadable(file: Path, error: Exception) -> DataError:
    return unreadable(
        DataError,
        file,
        f"as Parquet: {error}",
        expected="a Parquet file that llm_influence wrote",
        fix="check that the file is complete and may be read",
    )


def save(explanation: Fields, path: Path) -> Path:
    """Write one explanation as JSON or Parquet, by the suffix of the path.

    Raises:
        ConfigError: The path ends in neither ``.json`` nor ``.parquet``.
        OutputError: The place cannot be written.
    """
    if path.suffix == ".json":
        return write_text(path, to_json(explanation))
    _check_suffix(path)
    return write_table(table_of([explanation]), path)


def load(path: Path) -> dict[str, Any]:
    """Read the one explanation of a file that `save` wrote, as plain data.

    Raises:
        ConfigError: The path ends in neither ``.json`` nor ``.parquet``.
        DataError: The file cannot be read, or does not hold exactly one explanation.
    """
    if path.suffix == ".json":
        return _from_json(path)
    _check_suffix(path)
    explanations = fields_of(read_tables(path))
    if len(explanations) != 1:
        raise DataError(
            f"{len(explanations)} explanations",
            where=str(path),
            expected="exactly one explanation",
            fix="read many with from_arrow(read_tables(path))",
        )
    return explanations[0]


def to_json(explanation: Fields) -> str:
    """An explanation as JSON; null where a number does not exist."""
    tree = {"schema": VERSION} | {name: _json(value) for name, value in explanation.items()}
    tree["events"] = [asdict(event) for event in explanation["events"]]
    return json.dumps(tree, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _from_json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("schema") != VERSION:
            raise ValueError("another schema version")
        for name in UNMEASURED:
            tree[name] = math.nan if tree[name] is None else tree[name]
        for name in ("values", "standard_errors", *OF_EVENTS.values()):
            tree[name] = None if tree[name] is None else np.array(tree[name], dtype=np.float64)
        tree["events"] = tuple(Event(**event) for event in tree["events"])
        tree["block"] = tuple(tree["block"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise unreadable(
            DataError,
            path,
            error,
            expected="JSON that Influence.save wrote",
            fix="explain and save again with this version of llm_influence",
        ) from error
    return tree


def _json(value: Any) -> Any:  # noqa: ANN401 - any field of an explanation
    """Python's own types, with None for nan."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _check_suffix(path: Path) -> None:
    if path.suffix != ".parquet":
        raise ConfigError(
            f"the path ends in {path.suffix!r}",
            where=str(path),
            expected="a path that ends in .json or .parquet",
            fix="add .json or .parquet to the path",
        )


_FAIRNESS_KEY, _FAIRNESS_VERSION = b"llm_influence.fairness_test", b"1"

FAIRNESS_TEST_SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("feature", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),  # the user's own
        pa.field("other", pa.string(), nullable=False),  # the one put in its place
        pa.field("item_id", pa.string(), nullable=False),  # recommended first, own value
        pa.field("item_other", pa.string(), nullable=False),  # recommended first, other value
        pa.field("changed", pa.bool_(), nullable=False),
        pa.field("kept", pa.float64(), nullable=False),  # share of the first k still among them
        pa.field("k", pa.int32(), nullable=False),
        pa.field("log_odds", pa.float64(), nullable=False),  # of item_id, own value
        pa.field("log_odds_other", pa.float64(), nullable=False),
    ],
    metadata={_FAIRNESS_KEY: _FAIRNESS_VERSION},
)
"""One row a user, feature and other value."""


def write_fairness_test(table: pa.Table, folder: Path) -> Path:
    """Write ``fairness_test.parquet`` into a folder, whole or not at all.

    Raises:
        OutputError: The folder cannot be written.
    """
    checked = table.cast(FAIRNESS_TEST_SCHEMA)
    return write_whole(folder / FAIRNESS_TEST, partial(pq.write_table, checked))


def read_fairness_test(path: Path) -> pa.Table:
    """Read the table that `write_fairness_test` wrote.

    Raises:
        DataError: It is not Parquet.
        SchemaError: A column is missing or has another type, or the version is another one.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error
    version = (table.schema.metadata or {}).get(_FAIRNESS_KEY, b"none")
    names = FAIRNESS_TEST_SCHEMA.names
    try:
        if version != _FAIRNESS_VERSION:
            raise ValueError(f"version {version.decode()}")
        return table.select(names).cast(FAIRNESS_TEST_SCHEMA)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise SchemaError(
            f"another table ({error})",
            where=str(path),
            expected=f"version {_FAIRNESS_VERSION.decode()} with {', '.join(names)}",
            fix="write it again with `llm-influence fairness-test`",
        ) from error
