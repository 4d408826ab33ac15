"""Programs run one at a time on one core with one thread, so that their seconds can be compared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_pinned(words: list[str], folder: Path, core: int) -> None:
    """Run a program on a core; its output goes to ``log.txt`` of ``folder``.

    Raises:
        subprocess.CalledProcessError: The program failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    with (folder / "log.txt").open("w") as log:
        subprocess.run(  # noqa: S603
            ["taskset", "-c", str(core), *words],  # noqa: S607
            check=True,
            env=environment,
            stdout=log,
            stderr=log,
        )
