"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from llm_influence.errors import OutputError


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet; a reader sees the old file or the new one, never a part.

    Raises:
        OutputError: The file cannot be written.
    """
    _write(path, lambda part: pyarrow.parquet.write_table(table, part))


def write_text(text: str, path: Path) -> None:
    """Write a text as UTF-8; a reader sees the old file or the new one, never a part.

    Raises:
        OutputError: The file cannot be written.
    """
    _write(path, lambda part: part.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError as error:
        if part.exists():
            part.unlink()
        raise OutputError(
            f"cannot be written ({error.strerror or error})",
            where=str(path),
            expected="a writable place with enough space",
            fix="free space, or choose another output folder",
        ) from error
