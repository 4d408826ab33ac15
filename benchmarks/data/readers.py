"""Reading a log of ten million rows: speed and memory: docs/benchmarks/readers.json.

    python -m benchmarks.data.readers [--rows 10000000] [--repeats 3]

Makes a log in a temporary folder, reads and groups it with llm_influence, pandas and polars, each
run in its own process, and checks that all give the same histories.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness import arguments, started, write_benchmark

SEED = 0
BEHAVIORS = ["cart", "click", "favourite", "purchase"]
FORMATS = ("parquet", "csv")
NAMES = ("user_id", "item_id", "behavior")
PROTOCOL = {
    "log": "user_id (text), item_id (text), timestamp (seconds), behavior (4), value (half empty); "
    "rows in random order, no duplicates",
    "task": "file -> events sorted by user, time, file order; integer codes of users, items and "
    "behaviours in order of their text; offsets of users. llm_influence also checks for empty "
    "cells, implausible times and duplicates",
    "clock": "from the path to the finished arrays, imports left out; median over runs, each in a "
    "fresh process, systems in turn; the file is in the page cache",
    "memory": "largest resident set of the process (ru_maxrss), imports included",
    "check": "sha256 of offsets, items, behaviours, times and values is equal for all systems",
}

Arrays = list[npt.NDArray]
PARSER = arguments(
    __doc__,
    "readers",
    threads=None,
    rows=10_000_000,
    repeats=3,
    make={"type": Path, "help": argparse.SUPPRESS},
    measure={"nargs": 2, "help": argparse.SUPPRESS},
)


def make_log(folder: Path, rows: int) -> None:
    """Write the synthetic log as `log.parquet` and `log.csv`."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(SEED)
    users, items = max(rows // 20, 1), max(rows // 100, 1)
    # Squares of uniform numbers: some users and items are far more frequent than others.
    user = (rng.random(rows) ** 2 * users).astype(np.int32)
    item = (rng.random(rows) ** 2 * items).astype(np.int32)
    value = np.where(rng.random(rows) < 0.5, rng.integers(1, 6, rows), np.nan)
    user_ids = pa.array([f"user-{number}" for number in range(users)])
    item_ids = pa.array([f"item-{number}" for number in range(items)])
    table = pa.table(
        {
            "user_id": user_ids.take(pa.array(user)),
            "item_id": item_ids.take(pa.array(item)),
            "timestamp": rng.integers(1_600_000_000, 1_700_000_000, rows),
            "behavior": pa.array(BEHAVIORS).take(pa.array(rng.integers(0, 4, rows))),
            "value": pa.array(value, from_pandas=True),
        }
    )
    pyarrow.parquet.write_table(table, folder / "log.parquet")
    pyarrow.csv.write_csv(table, folder / "log.csv")


def with_llm_influence(path: Path) -> Arrays:
    """The library under test, with its default checks."""
    from llm_influence.data.log import BehaviorLog

    log = BehaviorLog.read(path)
    return [log.offsets, log.items, log.behaviors, log.timestamps, log.values]


def with_pandas(path: Path) -> Arrays:
    """The fastest way found: Arrow's CSV parser, and ids become integers before the sort."""
    import pandas as pd

    frame = pd.read_csv(path, engine="pyarrow") if path.suffix == ".csv" else pd.read_parquet(path)
    for name in NAMES:
        frame[name] = pd.factorize(frame[name], sort=True)[0].astype(np.int32)
    frame = frame.sort_values(["user_id", "timestamp"], kind="stable")
    sizes = frame.groupby("user_id", sort=True).size().to_numpy()
    return [
        np.concatenate([[0], np.cumsum(sizes)]),
        frame["item_id"].to_numpy(),
        frame["behavior"].to_numpy(),
        frame["timestamp"].to_numpy(),
        frame["value"].to_numpy(np.float32),
    ]


def with_polars(path: Path) -> Arrays:
    """The fastest way found: ids become members of a sorted Enum before the sort."""
    import polars as pl

    frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    for name in NAMES:
        members = pl.Enum(frame[name].unique().sort())
        frame = frame.with_columns(frame[name].cast(members).to_physical().cast(pl.Int32))
    frame = frame.sort("user_id", "timestamp", maintain_order=True)
    sizes = frame.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
    return [
        np.concatenate([[0], np.cumsum(sizes)]),
        frame["item_id"].to_numpy(),
        frame["behavior"].to_numpy(),
        frame["timestamp"].to_numpy(),
        frame["value"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
    ]


SYSTEMS: dict[str, Callable[[Path], Arrays]] = {
    "llm_influence": with_llm_influence,
    "pandas": with_pandas,
    "polars": with_polars,
}
MODULES = {
    "llm_influence": ["llm_influence.data", "pyarrow.dataset"],
    "pandas": ["pandas", "pyarrow.dataset", "pyarrow.parquet", "pyarrow.csv"],
    "polars": ["polars"],
}


def measure(system: str, path: Path) -> dict[str, object]:
    """Read once in this process: seconds, peak memory and a digest of the result."""
    for module in MODULES[system]:
        importlib.import_module(module)  # before the clock starts
    start = time.perf_counter()
    arrays = SYSTEMS[system](path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    digest = hashlib.sha256()
    for array, kind in zip(
        arrays, (np.int64, np.int32, np.int32, np.int64, np.float32), strict=True
    ):
        digest.update(np.ascontiguousarray(array, dtype=kind).data)
    return {"seconds": seconds, "peak_gib": peak, "digest": digest.hexdigest()}


def in_fresh_process(*words: str) -> str:
    """Run this program again; its memory starts from nothing."""
    command = [sys.executable, "-m", "benchmarks.data.readers", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(rows: int, repeats: int, out: Path) -> None:
    """Measure all systems on both formats and write the figures."""
    runs: dict[tuple[str, str], list[dict]] = {}
    with tempfile.TemporaryDirectory() as name:
        in_fresh_process("--make", name, "--rows", str(rows))
        for _ in range(repeats):
            for kind in FORMATS:
                for system in SYSTEMS:
                    text = in_fresh_process("--measure", system, f"{name}/log.{kind}")
                    runs.setdefault((system, kind), []).append(json.loads(text))
                    print(system, kind, text.strip(), flush=True)
    if len({one["digest"] for each in runs.values() for one in each}) > 1:
        sys.exit("the systems came to different histories: nothing is written")
    records = [record(system, kind, rows, each) for (system, kind), each in runs.items()]
    by_name = {(one["system"], one["task"]): one for one in records}
    ours, pandas = by_name["llm_influence", "parquet"], by_name["pandas", "parquet"]
    write_benchmark(
        out,
        name="readers",
        protocol={**PROTOCOL, "rows": rows, "repeats": repeats, "load_average": os.getloadavg()[1]},
        rows=records,
        figures={
            "rows": rows,
            "rows_per_second": ours["value"],
            "peak_gib": ours["peak_gib"],
            "ratio_to_pandas": round(pandas["seconds"] / ours["seconds"], 2),
            "rows_per_second_csv": by_name["llm_influence", "csv"]["value"],
        },
        seeds=[SEED],
    )


def record(system: str, kind: str, rows: int, runs: list[dict]) -> dict:
    """One flat record of all runs of one system on one format; low and high are the extremes."""
    seconds = [one["seconds"] for one in runs]
    return {
        "system": system,
        "task": kind,
        "metric": "rows_per_second",
        "value": round(rows / statistics.median(seconds)),
        "low": round(rows / max(seconds)),
        "high": round(rows / min(seconds)),
        "seconds": round(statistics.median(seconds), 2),
        "peak_gib": round(max(one["peak_gib"] for one in runs), 2),
    }


def main(options: argparse.Namespace) -> None:
    """Measure, or do the part of a fresh process."""
    if options.make:
        make_log(options.make, options.rows)
    elif options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
    else:
        run(options.rows, options.repeats, options.output)


if __name__ == "__main__":
    main(started(PARSER))
