"""A lock on an output folder: one job writes into it at a time.

The lock is the file ``.lock`` with process id, host and start of the process. It is left behind by
a kill; the next job on the same host sees that its process has ended, and takes the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_influence.errors import OutputError
from llm_influence.utils import unwritable

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it is missing.

    Raises:
        OutputError: Another job holds the lock, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _guarded(folder):
            _refuse_if_held(path)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(_own(), file)
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Let one process at a time check and replace a lock; the system frees it after a kill."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_if_held(path: Path) -> None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host, started = int(holder["pid"]), str(holder["host"]), str(holder["started"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return  # no lock, or one whose writer was killed before its first line was complete
    here = host == socket.gethostname()
    if here and _started(pid) != started:
        return  # the process has ended; its number may belong to another one now
    raise OutputError(
        f"process {pid} on {host} writes into this folder now",
        where=str(path.parent),
        expected="one job in a folder at a time",
        fix="wait until it ends, or choose another --out"
        + ("" if here else f"; if that job has died, delete {path}"),
    )


def _own() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": _started(pid)}


def _started(pid: int) -> str:
    """When a process of this host began, in ticks since boot; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return _alive(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _alive(pid: int) -> str:
    """The same on systems without ``/proc``, which give no start: whether there is a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"
