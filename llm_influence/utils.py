"""Atomic files and optional imports.

Files that are either complete or not there.

Optional libraries, imported when they are used and named when they are missing.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_influence.errors import ConfigError, OutputError


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file so that a crash, a kill or a full disk never leaves half of it.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes
    the final name in one step. Missing folders are created. A file already there is replaced.

    Args:
        path: The final name.
        write: Writes the content to the path it is given.

    Returns:
        ``path``.

    Raises:
        OutputError: The place cannot be written, or the disk is full. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        _remove(temporary)
        raise unwritable(path, error) from error
    except BaseException:
        _remove(temporary)
        raise
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text as UTF-8, whole or not at all; see `write_whole`."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def unwritable(path: Path, error: Exception) -> OutputError:
    """The error of a place that refused what was to be written there."""
    return OutputError(
        f"cannot be written ({getattr(error, 'strerror', None) or error})",
        where=str(path),
        expected="a place with enough space that may be written",
        fix="free some space, or name another output path",
    )


def _flush(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    """Clean up without hiding the error that made it necessary."""
    try:
        temporary.unlink()
    except OSError:
        return


def require(module: str, *, extra: str, purpose: str) -> Any:  # noqa: ANN401 - any module
    """Import an optional library.

    Args:
        module: The module to import, such as ``"matplotlib.pyplot"``.
        extra: The extra of llm-influence that brings it.
        purpose: What it is needed for, for the message.

    Raises:
        ConfigError: It is not installed; the message holds the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(
            f"{library} cannot be imported ({error})",
            where=purpose,
            expected=f"{library} to be installed",
            fix=f"pip install 'llm-influence[{extra}]'",
        ) from error
