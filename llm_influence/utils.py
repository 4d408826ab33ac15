"""Atomic files, optional imports, and the process group of a distributed run."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_influence.errors import ConfigError, InfluenceError, OutputError

if TYPE_CHECKING:
    from accelerate import PartialState


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


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
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and not isinstance(error, InfluenceError):
            raise unwritable(path, error) from error
        raise
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text as UTF-8, whole or not at all; see `write_whole`."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def without_formula(cell: object) -> object:
    """A CSV cell that no spreadsheet runs: text that would begin a formula gets a quote sign."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def with_formula(cell: str) -> str:
    """The text before `without_formula`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


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


def require(module: str, *, extra: str, purpose: str) -> Any:  # noqa: ANN401
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


@contextmanager
def distributed() -> Iterator[PartialState]:
    """Open the process group of `torchrun` or `accelerate launch`, and end it after the block.

    Processes that exit with an open group can abort. A group that was open before the block, of an
    outer block or of the caller's own, stays open. To call `finetune` more than once in a process,
    put all calls into one block. Without a launcher there is one process and no group.

    The context manager is also a decorator of functions.

    Yields:
        The state of the process: its rank, its device and the number of processes.
    """
    import torch
    from accelerate import PartialState

    opens = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    state = PartialState(cpu=not torch.accelerator.is_available())
    try:
        yield state
        if opens:
            state.wait_for_everyone()
    finally:
        if opens:
            state.destroy_process_group()
