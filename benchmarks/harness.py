"""Write a benchmark's figures where anyone can check them: `docs/benchmarks/<name>.json`.

Every benchmark script ends with one call of `write_benchmark`. The file says what was run, on
what, with which versions and seeds, and holds the flat `rows` that the docs' tables are made of.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "llm-influence",
    "accelerate",
    "datasets",
    "duckdb",
    "numpy",
    "pandas",
    "peft",
    "polars",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
)

Scalar = str | int | float | bool | None


def write_benchmark(
    path: str | Path,
    *,
    name: str,
    protocol: Mapping[str, object],
    rows: Sequence[Mapping[str, Scalar]],
    figures: Mapping[str, Scalar],
    seeds: Sequence[int] = (),
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write one benchmark as JSON, whole or not at all.

    Args:
        path: The file to write; its folder is made if needed.
        name: The benchmark's name.
        protocol: What was measured and how, in plain words and numbers.
        rows: Flat records: system, task, metric, value, low, high, seconds...
        figures: The few numbers that matter, by the key an issue names; a name where the answer
            is one (which method is recommended).
        seeds: Seeds of all random choices.
        command: The command line that repeats it. Default: this process's own, with paths
            relative to the repository.
        versions: Versions of packages that are not looked up by themselves.

    Returns:
        The path written.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    path = Path(path)
    record = {
        "name": name,
        "command": command or command_line(),
        "protocol": dict(protocol),
        "hardware": hardware(),
        "versions": {**package_versions(), **(versions or {})},
        "seeds": list(seeds),
        "rows": [dict(row) for row in rows],
        "figures": dict(figures),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(path.name + ".part")
    half_written.write_text(text, encoding="utf-8")
    half_written.replace(path)
    return path


def write_part(
    path: Path,
    task: str,
    *,
    protocol: Mapping[str, object],
    rows: Sequence[Mapping[str, Scalar]],
    figures: Mapping[str, Scalar],
) -> Path:
    """Put rows of one task and their figures in the place of those that the file has.

    All else in the file stays, its command too; hardware and versions are those of now.

    Args:
        path: A file that `write_benchmark` wrote.
        task: What ``task`` is in the rows that are replaced; those given have it too.
        protocol: Entries to put over the file's own.
        rows: See `write_benchmark`.
        figures: Put over the file's own.
    """
    whole = json.loads(path.read_text(encoding="utf-8"))
    return write_benchmark(
        path,
        name=whole["name"],
        protocol=whole["protocol"] | dict(protocol),
        rows=[*(row for row in whole["rows"] if row["task"] != task), *rows],
        figures=whole["figures"] | dict(figures),
        seeds=whole["seeds"],
        command=whole["command"],
    )


def command_line() -> str:
    """This process's command, free of the paths of the machine that ran it.

    An option that is a path elsewhere keeps its last part only: it is a place on one machine.
    """
    return shlex.join(["python", *(_portable(word) for word in sys.argv)])


def _portable(word: str) -> str:
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    here = Path(__file__).resolve().parent.parent
    inside = path.resolve().is_relative_to(here)
    shown = str(path.resolve().relative_to(here)) if inside else path.name
    return option + equals + shown


def hardware() -> dict[str, Scalar]:
    """Processor model, cores this process may use, memory in GiB, and the CUDA device if any."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "accelerator": _accelerator(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return None
    return round(total / 2**30, 1)


def _accelerator() -> str | None:
    """The CUDA device's name, asked only where torch is already in use: importing it is slow."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
