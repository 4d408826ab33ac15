"""The columns of an influence table: a fixed Arrow schema with a version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_influence.errors import DataError, SchemaError, choices
from llm_influence.types import IntArray

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
        _column("frame_score", pa.float64()),
        _column("base_value", pa.float64()),
        _column("full_value", pa.float64()),
        _column("prediction", pa.float64(), nullable=True),  # null where the target has none
        _column("completeness_gap", pa.float64(), nullable=True),  # null where nothing moved
        _column("passes", pa.int64()),
        _column("seed", pa.int64()),
        _column("left_out", pa.int64()),
        _column("largest_standard_error", pa.float64(), nullable=True),
        _column("converged", pa.bool_(), nullable=True),
        _column("lds", pa.float64(), nullable=True),
        _column("fidelity_masks", pa.int64()),
        _column("agreement", pa.float64(), nullable=True),
        _column("agreement_with", pa.string()),  # empty where no other method was asked
        _column("card_passes", pa.int64()),
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
