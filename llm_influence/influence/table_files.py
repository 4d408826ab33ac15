"""The columns of an influence table: a fixed Arrow schema with a version.

Influence tables as Parquet files.

Counterfactual flips as a table: what is recommended when a user's feature alone is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.errors import DataError, SchemaError, choices
from llm_influence.types import IntArray
from llm_influence.utils import write_whole

VERSION = "3"
_VERSION_KEY = b"llm_influence.schema"
_READ = ("2", VERSION)
"""Versions of files that are read."""
_NEW = ("bfloat16_error",)
"""Columns that version 2 did not have; where they are missing they are null."""


def _column(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


SCHEMA = pa.schema(
    [
        _column("run", pa.string()),
        _column("user_id", pa.string()),
        _column("player", pa.int32()),  # 0, 1, 2... within each explanation
        # null for the user's features, which belong to no event:
        _column("position", pa.int32(), nullable=True),  # 0 is the oldest explained event
        _column("field", pa.string(), nullable=True),  # part of the event, null for the whole
        _column("item_id", pa.string(), nullable=True),
        _column("title", pa.string(), nullable=True),
        _column("behavior", pa.string(), nullable=True),
        _column("timestamp", pa.int64(), nullable=True),  # Unix seconds, UTC
        _column("gap_seconds", pa.int64(), nullable=True),  # null for the first event
        _column("value", pa.float32(), nullable=True),
        _column("gate", pa.float64(), nullable=True),  # of a gated recurrence, null elsewhere
        _column("method", pa.string()),
        _column("target", pa.string()),
        _column("target_id", pa.string()),
        _column("target_name", pa.string()),
        _column("removal", pa.string()),
        _column("units", pa.string()),
        _column("score", pa.float64()),
        _column("standard_error", pa.float64(), nullable=True),
        _column("rank", pa.int32()),  # 1 is the most supporting player
        _column("prompt_score", pa.float64()),
        _column("base_value", pa.float64()),
        _column("full_value", pa.float64()),
        _column("prediction", pa.float64(), nullable=True),  # null where the target has none
        _column("completeness_gap", pa.float64(), nullable=True),  # null where nothing moved
        _column("evaluations", pa.int64()),
        _column("seed", pa.int64()),
        _column("left_out", pa.int64()),
        _column("largest_standard_error", pa.float64(), nullable=True),
        _column("converged", pa.bool_(), nullable=True),
        _column("lds", pa.float64(), nullable=True),
        _column("fidelity_masks", pa.int64()),
        _column("agreement", pa.float64(), nullable=True),
        _column("agreement_with", pa.string()),  # empty where no other method was asked
        _column("card_evaluations", pa.int64()),
        _column("bfloat16_error", pa.float64(), nullable=True),  # null: all was read in float32
    ],
    metadata={_VERSION_KEY: VERSION.encode()},
)
"""The columns of an influence table, in order; the metadata holds the schema's version."""


def explanation_starts(table: pa.Table) -> npt.NDArray[np.int64]:
    """(N,) the row at which each explanation begins.

    Raises:
        DataError: Rows of an explanation are missing or out of order.
    """
    player = table["player"].to_numpy()
    starts = np.flatnonzero(player == 0)
    lengths = np.diff(starts, append=len(player))
    whole = (not len(player)) or (len(starts) > 0 and starts[0] == 0)
    if not whole or not np.array_equal(player, positions(lengths)):
        raise DataError(
            "rows of an explanation are missing or out of order",
            where="influence table, column 'player'",
            expected="players 0, 1, 2... within each explanation",
            fix="keep explanations whole when filtering, and sort by run, user_id, method, "
            "target_id and player",
        )
    return starts


def positions(lengths: IntArray) -> npt.NDArray[np.int32]:
    """0, 1, 2... within each explanation: (N,) lengths to (rows,) positions."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return (np.arange(total) - np.repeat(ends - lengths, lengths)).astype(np.int32)


def check_version(schema: pa.Schema, file: Path) -> None:
    """Refuse a file of another schema version, or of none."""
    found = (schema.metadata or {}).get(_VERSION_KEY)
    if not found or found.decode() not in _READ:
        said = f"schema version {found.decode()!r}" if found else "no schema version"
        raise SchemaError(
            f"{said} in the file's metadata",
            where=str(file),
            expected=f"'llm_influence.schema': {choices(_READ)}",
            fix="read a table written by this version of llm_influence, or explain again",
        )


def check_columns(schema: pa.Schema, where: str) -> None:
    """Refuse a table that lacks a column."""
    missing = [name for name in SCHEMA.names if name not in (*schema.names, *_NEW)]
    if missing:
        raise SchemaError(
            f"missing column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}",
            where=where,
            expected="the columns of an influence table: " + ", ".join(SCHEMA.names),
            fix="keep every column when rewriting a table, or explain again",
        )


def with_schema(table: pa.Table, where: str) -> pa.Table:
    """The columns of `SCHEMA` in its order and types.

    Raises:
        SchemaError: A column is missing, or cannot become its type without losing something.
    """
    check_columns(table.schema, where)
    for name in set(_NEW) - set(table.column_names):
        field = SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(len(table), field.type))
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise SchemaError(
            f"columns of other types ({error})",
            where=where,
            expected="the types of llm_influence.influence.table.SCHEMA",
            fix="write the table with to_arrow and write_table",
        ) from error


SIDE_TABLES = ("items.parquet", "users.parquet")
"""Items and users, beside the shards of a batch explanation."""
OUTCOMES = "outcomes.parquet"
"""What came after each history, where examples were explained; beside the shards too."""
FLIPS = "fairness_test.parquet"
"""Counterfactual flips (`influence.flips`), beside the shards too."""


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
            `SIDE_TABLES`, `OUTCOMES` and `FLIPS` left aside), or several of either.

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
        if file.name not in (*SIDE_TABLES, OUTCOMES, FLIPS)
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


FLIPS_VERSION = "1"
_KEY = b"llm_influence.flips"

FAIRNESS_TEST_SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("feature", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),  # the user's own
        pa.field("other", pa.string(), nullable=False),  # the one put in its place
        pa.field("item_id", pa.string(), nullable=False),  # recommended first, as the user is
        pa.field("item_other", pa.string(), nullable=False),  # and with the other value
        pa.field("changed", pa.bool_(), nullable=False),
        pa.field("kept", pa.float64(), nullable=False),  # share of the first k still among them
        pa.field("k", pa.int32(), nullable=False),
        pa.field("log_odds", pa.float64(), nullable=False),  # of item_id, as the user is
        pa.field("log_odds_other", pa.float64(), nullable=False),
    ],
    metadata={_KEY: FLIPS_VERSION.encode()},
)
"""One row a user, feature and other value."""


def write_fairness_test(table: pa.Table, folder: Path) -> Path:
    """Write ``fairness_test.parquet`` into a folder, whole or not at all.

    Raises:
        OutputError: The folder cannot be written.
    """
    return write_whole(folder / FLIPS, partial(pq.write_table, table.cast(FAIRNESS_TEST_SCHEMA)))


def read_fairness_test(path: Path) -> pa.Table:
    """Read a table of flips.

    Raises:
        DataError: It is not Parquet.
        SchemaError: A column is missing or of another type, or the version is another one.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"cannot be read as Parquet ({error})",
            where=str(path),
            expected="what `llm-influence flips` wrote",
            fix="write it again",
        ) from error
    version = (table.schema.metadata or {}).get(_KEY, b"none").decode()
    missing = [name for name in FAIRNESS_TEST_SCHEMA.names if name not in table.column_names]
    if version != FLIPS_VERSION or missing:
        raise SchemaError(
            f"version {version}" if version != FLIPS_VERSION else f"missing columns {missing}",
            where=str(path),
            expected=f"version {FLIPS_VERSION} with {', '.join(FAIRNESS_TEST_SCHEMA.names)}",
            fix="write it again with `llm-influence flips`",
        )
    try:
        return table.select(FAIRNESS_TEST_SCHEMA.names).cast(FAIRNESS_TEST_SCHEMA)
    except (pa.ArrowInvalid, ValueError) as error:
        raise SchemaError(
            f"columns of other types ({error})",
            where=str(path),
            expected="the types of llm_influence.influence.flips.FAIRNESS_TEST_SCHEMA",
            fix="write it again with `llm-influence flips`",
        ) from error
