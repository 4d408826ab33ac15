"""Counterfactual flips as a table: what is recommended when a user's feature alone is another."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.errors import DataError, SchemaError
from llm_influence.files import write_whole
from llm_influence.influence.parquet import FLIPS

VERSION = "1"
_KEY = b"llm_influence.flips"

FLIP_SCHEMA = pa.schema(
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
    metadata={_KEY: VERSION.encode()},
)
"""One row a user, feature and other value."""


def write_flips(table: pa.Table, folder: Path) -> Path:
    """Write ``flips.parquet`` into a folder, whole or not at all.

    Raises:
        OutputError: The folder cannot be written.
    """
    return write_whole(folder / FLIPS, partial(pq.write_table, table.cast(FLIP_SCHEMA)))


def read_flips(path: Path) -> pa.Table:
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
    missing = [name for name in FLIP_SCHEMA.names if name not in table.column_names]
    if version != VERSION or missing:
        raise SchemaError(
            f"version {version}" if version != VERSION else f"missing columns {missing}",
            where=str(path),
            expected=f"version {VERSION} with {', '.join(FLIP_SCHEMA.names)}",
            fix="write it again with `llm-influence flips`",
        )
    try:
        return table.select(FLIP_SCHEMA.names).cast(FLIP_SCHEMA)
    except (pa.ArrowInvalid, ValueError) as error:
        raise SchemaError(
            f"columns of other types ({error})",
            where=str(path),
            expected="the types of llm_influence.influence.flips.FLIP_SCHEMA",
            fix="write it again with `llm-influence flips`",
        ) from error
