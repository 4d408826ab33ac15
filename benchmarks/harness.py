"""The frame of every benchmark: arguments, results kept on disk, and the JSON file.

A program names its options with `arguments`, reads them with `started`, keeps what it measured
with `Results` and ends with one call of `write_benchmark`:

    PARSER = arguments(__doc__, "ablations", epochs=(2.0, "epochs of every setting"))

    def main(options: argparse.Namespace) -> None:
        results = Results(options.work / "results.jsonl", {"epochs": options.epochs})
        ...

    if __name__ == "__main__":
        main(started(PARSER))
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("docs/benchmarks")
PACKAGES = (
    *("llm-influence", "accelerate", "datasets", "duckdb", "numpy", "pandas", "peft", "polars"),
    *("pyarrow", "tokenizers", "torch", "transformers"),
)

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
Option = object
"""A default, a type (the default is then None), either of them with a help text, or the keywords
of `argparse.ArgumentParser.add_argument`."""


# --- arguments -----------------------------------------------------------------------------------


def arguments(
    doc: str | None,
    name: str,
    *,
    seeds: Sequence[int] | None = None,
    threads: int | None = 1,
    **options: Option,
) -> argparse.ArgumentParser:
    """The parser of a benchmark: shared options first, then its own.

    Args:
        doc: The program's docstring; its first line is the description.
        name: Of the benchmark: the JSON file and the work folder are named by it.
        seeds: Default of ``--seeds``; None: the program has no such option.
        threads: Default of ``--threads``; None: as many as torch chooses.
        options: The program's own options by name.
    """
    about = (doc or name).strip().splitlines()[0]
    parser = argparse.ArgumentParser(description=about, prog=f"python -m {_module(name)}")
    parser.add_argument("--output", type=Path, default=OUTPUT / f"{name}.json", help="JSON file")
    work = Path("runs/benchmarks") / name
    parser.add_argument("--work", type=Path, default=work, help="folder of models and results")
    again = "--no-resume measures again what --work holds"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=again)
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads of torch")
    parser.add_argument("--core", type=int, help="run on this CPU core alone")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="of all runs")
    for key, option in options.items():
        parser.add_argument(f"--{key.replace('_', '-')}", **_keywords(option))
    return parser


def _module(name: str) -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else f"benchmarks ({name})"


def _keywords(option: Option) -> dict[str, object]:
    """What `add_argument` needs for an option."""
    if isinstance(option, dict):
        return option
    value, text = option if isinstance(option, tuple) else (option, None)
    if isinstance(value, type):
        return {"type": value, "help": text}
    if isinstance(value, bool):
        return {"action": argparse.BooleanOptionalAction, "default": value, "help": text}
    if isinstance(value, list):
        return {"type": type(value[0]), "nargs": "+", "default": value, "help": text}
    return {"type": type(value), "default": value, "help": text}


def started(parser: argparse.ArgumentParser, *, overrides: bool = False) -> argparse.Namespace:
    """Parse the command line, then pin the process and set the threads.

    Args:
        parser: Made by `arguments`.
        overrides: Keep ``--section.option=value`` of a run configuration in ``overrides``.
    """
    if overrides:
        options, options.overrides = parser.parse_known_args()
    else:
        options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    if options.threads is not None:
        import torch  # some programs need none

        torch.set_num_threads(options.threads)
    return options


# --- results on disk -----------------------------------------------------------------------------


class Results:
    """Measurements by key in a JSON Lines file: a run that was stopped continues where it was.

    Args:
        path: The file; made if it is not there.
        settings: What must be equal for a measurement to be used again.
        resume: False: begin with an empty file.

    Raises:
        SystemExit: The file holds measurements of other settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, object] | None = None, *, resume: bool = True
    ) -> None:
        self._path, self._known = path, {}
        head = json.dumps(dict(settings or {}), default=str)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not resume:
            path.write_text(head + "\n", encoding="utf-8")
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != json.loads(head):
            raise SystemExit(f"{path} holds results of {first}, not {head}: add --no-resume")
        for line in lines:
            record = json.loads(line)
            self._known[record["key"]] = record["value"]

    def __contains__(self, key: str) -> bool:
        """Whether the key has been measured."""
        return key in self._known

    def keep(self, key: str, measure: Callable[[], object]) -> object:
        """The value of a key: read where it is known, else measured, written and printed."""
        if key not in self._known:
            value = json.loads(json.dumps(measure()))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
            self._known[key] = value
            fields = value.items() if isinstance(value, dict) else ()
            shown = {name: entry for name, entry in fields if not isinstance(entry, list)}
            print(f"{key}: {json.dumps(shown)}", flush=True)
        return self._known[key]


def results_of(options: argparse.Namespace, **settings: object) -> Results:
    """The results in ``--work``, which hold for these settings."""
    return Results(options.work / "results.jsonl", settings, resume=options.resume)


def selection(words: str | None, names: Sequence[str], separator: str = ";") -> list[str]:
    """The names of ``--only``, or all of them.

    Raises:
        SystemExit: A name is unknown.
    """
    chosen = [word.strip() for word in words.split(separator)] if words else list(names)
    if unknown := set(chosen) - set(names):
        raise SystemExit(f"--only {', '.join(unknown)}: choose among {separator.join(names)}")
    return chosen


# --- the JSON file -------------------------------------------------------------------------------


def row_of(
    system: str, task: str, metric: str, value: Scalar, *more: Scalar, **rest: Scalar
) -> Row:
    """A flat record; two further values are the ends of the interval."""
    ends = dict(zip(("low", "high"), more, strict=False))
    return {"system": system, "task": task, "metric": metric, "value": value, **ends, **rest}


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
        path: The file; its folder is made.
        name: The benchmark's name.
        protocol: What was measured and how, in words and numbers.
        rows: Flat records: system, task, metric, value, low, high, seconds...
        figures: The few numbers that matter.
        seeds: Seeds of all random choices.
        command: The command that repeats it; default: this process's own.
        versions: Versions of packages beside `PACKAGES`.

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
    for key, value in record["figures"].items():
        print(f"{key:48} {value:.4g}" if isinstance(value, float) else f"{key:48} {value}")
    return path


def write_part(
    path: Path,
    task: str,
    *,
    protocol: Mapping[str, object],
    rows: Sequence[Mapping[str, Scalar]],
    figures: Mapping[str, Scalar],
) -> Path:
    """Replace the rows of one task in a file that `write_benchmark` wrote; the rest stays.

    Args:
        path: The file.
        task: ``task`` of the rows to replace.
        protocol: Entries put over the file's own.
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
    """This process's command without the paths of this machine.

    A path outside the repository keeps its last part only.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else [_portable(sys.argv[0])]
    return shlex.join(["python", *program, *(_portable(word) for word in sys.argv[1:])])


def _portable(word: str) -> str:
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    inside = path.resolve().is_relative_to(ROOT)
    return option + equals + (str(path.resolve().relative_to(ROOT)) if inside else path.name)


def hardware() -> dict[str, Scalar]:
    """Processor model, cores this process may use, memory in GiB, and the CUDA device if any."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "accelerator": str(torch.cuda.get_device_name()) if cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed ones of `PACKAGES`."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not available on this system
        return None
    return round(total / 2**30, 1)
