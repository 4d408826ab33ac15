"""Programs run one at a time on one core with one thread, so that their seconds can be compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_pinned(words: Sequence[str], folder: Path, core: int) -> None:
    """Run a program on a core; its output goes to ``log.txt`` of ``folder``.

    Raises:
        subprocess.CalledProcessError: The program failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "log.txt").open("w") as log:
        subprocess.run(  # noqa: S603
            ["taskset", "-c", str(core), *words],  # noqa: S607
            check=True,
            env=environment,
            stdout=log,
            stderr=log,
        )


def finetune_pinned(
    config: Path, overrides: Sequence[str], folder: Path, seed: int, core: int
) -> Path:
    """Fine-tune our model on one core into ``folder``/model, unless that is done; the model folder.

    A fine-tuning that was cut short begins anew: its seconds would not be those of one run.
    """
    model = folder / "model"
    if not (model / "metrics.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        print(f"llm_influence {folder.name}", flush=True)
        words = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--config", str(config)]
        words += ["--output", str(model), "--train.seed", str(seed)]
        run_pinned([*words, *overrides], folder, core)
    return model
