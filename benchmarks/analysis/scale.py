"""`analyze factors` on influence tables larger than memory: docs/benchmarks/analysis_scale.json.

    python -m benchmarks.analysis.scale [--rows 50000000] [--memory 2GB]

Makes influence tables with known effects as Parquet shards in a temporary folder of ``--work``,
runs the command line in its own process, and measures its peak memory, time and error.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import arguments, row_of, started, write_benchmark
from llm_influence.influence.table import SCHEMA
from llm_influence.influence.table_files import write_table

EVENTS = 50
"""Of an explanation."""
SHARD = 20_000
"""Explanations of a shard."""
ITEMS = 20_000
BEHAVIORS = {"view": 0.0, "cart": 0.3, "purchase": 0.8, "dismiss": -0.4}
CATEGORIES = {"books": 0.0, "garden": 0.1, "music": 0.2, "shoes": -0.1}
NOISE = 0.5
USER_NOISE = 0.3
AGES = 60
SEED = 0
PARSER = arguments(
    __doc__, "analysis_scale", threads=None, rows=50_000_000, memory=("2GB", "DuckDB may use")
)


def write_shard(folder: Path, number: int, explanations: int) -> None:
    """One shard, a user an explanation: effects of behaviour, category and user, and noise."""
    random = np.random.default_rng([SEED, number])
    rows, events = explanations * EVENTS, np.tile(np.arange(EVENTS, dtype=np.int32), explanations)
    user = np.repeat(np.arange(explanations), EVENTS) + number * SHARD
    pauses = np.exp(random.normal(7, 2.5, size=(explanations, EVENTS))).astype(np.int64)
    times = 1_700_000_000 + np.cumsum(pauses, axis=1).ravel()
    item = random.integers(ITEMS, size=rows)
    behavior = random.integers(len(BEHAVIORS), size=rows)
    score = np.array(list(BEHAVIORS.values()))[behavior]
    score += np.array(list(CATEGORIES.values()))[item % len(CATEGORIES)]
    score += np.repeat(USER_NOISE * random.normal(size=explanations), EVENTS)
    score += NOISE * random.normal(size=rows)
    order = np.argsort(-score.reshape(explanations, EVENTS), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, EVENTS + 1)[None], axis=1)
    columns = {
        "user_id": _texts("u", user),
        "player": pa.array(events),
        "position": pa.array(events),
        "item_id": _texts("i", item),
        "title": _texts("title ", item),
        "behavior": pa.array(list(BEHAVIORS)).take(pa.array(behavior)),
        "timestamp": pa.array(times),
        "gap_seconds": pa.array(pauses.ravel(), mask=events == 0),
        "value": pa.array(random.integers(1, 6, size=rows).astype(np.float32)),
        "target_id": _texts("i", np.repeat(random.integers(ITEMS, size=explanations), EVENTS)),
        "score": pa.array(score),
        "rank": pa.array(ranks.ravel().astype(np.int32)),
    }
    write_table(_whole(columns, rows), folder / f"part-{number:05d}.parquet")


def _texts(prefix: str, codes: np.ndarray) -> pa.Array:
    distinct, places = np.unique(codes, return_inverse=True)
    return pa.array([f"{prefix}{code}" for code in distinct.tolist()]).take(pa.array(places))


def _whole(columns: dict[str, pa.Array], rows: int) -> pa.Table:
    """All columns of an influence table; those that do not matter here are the same everywhere."""
    texts = {"method": "leave_one_out", "target": "item", "removal": "drop", "units": "target"}
    constants: dict[str, object] = {**texts, "field": None}
    for field in SCHEMA:
        if field.name in columns:
            continue
        value = constants.get(field.name, "" if field.type == pa.string() else None)
        if value is None and not field.nullable:
            value = 0
        columns[field.name] = pa.repeat(pa.scalar(value, field.type), rows)
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


def write_tables(folder: Path, rows: int) -> int:
    """All shards with items and users beside them; the number of users."""
    users = rows // EVENTS
    for number, start in enumerate(range(0, users, SHARD)):
        write_shard(folder, number, min(SHARD, users - start))
        print(f"\r{min(start + SHARD, users) * EVENTS:,} rows written", end="", flush=True)
    print()
    names = list(CATEGORIES)
    ids = [f"i{code}" for code in range(ITEMS)]
    kinds = [names[code % len(names)] for code in range(ITEMS)]
    pq.write_table(pa.table({"item_id": ids, "category": kinds}), folder / "items.parquet")
    ages = 20 + np.arange(users) % AGES
    people = pa.table({"user_id": _texts("u", np.arange(users)), "age": pa.array(ages)})
    pq.write_table(people, folder / "users.parquet")
    return users


def analyse(tables: Path, out: Path, memory: str) -> tuple[float, float]:
    """Seconds and peak resident GiB of the command line, in a process of its own."""
    words = ["analyze", "factors", str(tables), "--out", str(out), "--memory", memory]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llm_influence.cli", *words, "--temp", str(tables.parent)],
        check=True,
    )
    seconds = time.perf_counter() - begun
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def largest_error(out: Path) -> float:
    """How far the effects of behaviours and categories lie from the truth, at most."""
    tree = json.loads((out / "factors.json").read_text(encoding="utf-8"))
    errors = []
    for factor, truth in (("behavior", BEHAVIORS), ("item:category", CATEGORIES)):
        mean = sum(truth.values()) / len(truth)
        found = [row for row in tree["tables"]["effects"] if row["factor"] == factor]
        errors += [abs(row["effect"] - (truth[row["level"]] - mean)) for row in found]
    return max(errors)


def main(options: argparse.Namespace) -> None:
    """Write tables, analyse them, write the figures."""
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        tables, out = Path(place) / "tables", Path(place) / "out"
        tables.mkdir()
        users = write_tables(tables, options.rows)
        size = sum(path.stat().st_size for path in tables.iterdir()) / 2**30
        seconds, peak = analyse(tables, out, options.memory)
        error = largest_error(out)
    rows = users * EVENTS
    figures = {"rows": rows, "seconds": seconds, "peak_gib": peak, "largest_effect_error": error}
    write_benchmark(
        options.output,
        name="analysis_scale",
        protocol={
            "tables": f"{users:,} users, one explanation of {EVENTS} events each, generated",
            "factors": "the usual, a category of items, an age of users",
            "memory": f"DuckDB may use {options.memory}; peak_gib is the whole process's",
            "parquet_gib": size,
        },
        rows=[row_of("analyze factors", "factors", name, value) for name, value in figures.items()],
        figures=figures,
        seeds=[SEED],
    )


if __name__ == "__main__":
    main(started(PARSER))
