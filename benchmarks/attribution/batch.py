"""Batch explanation: rate by method, what kills cost, the gain of a second process: batch.json.

    python -m benchmarks.attribution.batch --model runs/movielens_100k [--users 96] [--kills 3]

Kills are real (SIGKILL, at random moments); the folder is compared row by row with that of an
undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import ROOT, arguments, row_of, started, write_benchmark
from llm_influence import Explainer, explain_batch
from llm_influence.attribution.methods import METHODS
from llm_influence.influence.table_files import read_tables
from llm_influence.run import Run

KEYS = ["user_id", "position", "item_id", "timestamp"]
SEED = 0
PARSER = arguments(
    __doc__,
    "batch",
    threads=None,
    model={"type": Path, "required": True, "help": "folder that `finetune` wrote"},
    users=96,
    kills=3,
)


def rates(run: Run, users: list[str], folder: Path) -> dict[str, float]:
    """Explanations a second of every method, one process with all threads."""
    log, values = run.split.log.select(users), {}
    for method in METHODS:
        if method == "exact_shapley":
            continue  # refuses histories of more than 12 events
        begun = time.perf_counter()
        explain_batch(Explainer(run.model, method), log, folder / method, shard_size=32)
        values[method] = len(log) / (time.perf_counter() - begun)
    return values


def command(model: Path, log: Path, out: Path, processes: int) -> list[str]:
    """The command line of a batch job with one thread a process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = [str(ROOT / "scripts" / "explain_batch.py"), "--model", str(model), "--events"]
    tail = [str(log), "--out", str(out), "--shard-size", "8", "--threads", "1"]
    return [sys.executable, *(launcher if processes > 1 else []), *script, *tail]


def seconds_of(line: list[str], out: Path) -> float:
    """Seconds from the plan to the manifest: the work, without start-up and loading."""
    subprocess.run(line, check=True, capture_output=True)
    return (out / "manifest.json").stat().st_mtime - (out / "plan.json").stat().st_mtime


def killed_run(line: list[str], out: Path, kills: int) -> int:
    """Start the job, kill it ``kills`` times while it works, then let it end."""
    draw, done = random.Random(SEED), 0  # noqa: S311
    while done < kills:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(out.glob("part-*.parquet")))
        while len(list(out.glob("part-*.parquet"))) == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 2))
        if process.poll() is None:
            process.kill()
            done += 1
        process.wait()
    subprocess.run(line, check=True, capture_output=True)
    return done


def difference(table: pa.Table, undisturbed: pa.Table) -> tuple[int, int]:
    """(lost rows, doubled rows) of a table against the undisturbed one."""
    count = [
        {tuple(row.values()) for row in side.select(KEYS).to_pylist()}
        for side in (undisturbed, table)
    ]
    return len(count[0] - count[1]), table.num_rows - len(count[1])


def main(options: argparse.Namespace) -> None:
    """Measure and write."""
    run = Run.open(options.model)
    chosen = run.split.log.user_ids[: options.users].to_pylist()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = folder / "log.parquet"
        pq.write_table(run.split.log.select(chosen).to_table(), log)
        values = rates(run, chosen, folder / "rates")
        one, two, broken = folder / "one", folder / "two", folder / "broken"
        alone = seconds_of(command(options.model, log, one, 1), one)
        pair = seconds_of(command(options.model, log, two, 2), two)
        killed = killed_run(command(options.model, log, broken, 1), broken, options.kills)
        undisturbed = read_tables(one)
        lost, doubled = difference(read_tables(broken), undisturbed)
        same, unbroken = (read_tables(each).equals(undisturbed) for each in (two, broken))
    write_benchmark(
        options.output,
        name="batch",
        protocol={
            "users": len(chosen),
            "events": "the last 50 of each user's history",
            "rate": "one process with all threads, shard files included, model loading left out",
            "processes": "leave_one_out, one thread a process, from plan to manifest",
            "kills": "SIGKILL of one process at random moments, resumed with the same command",
            "rows_of_2_processes_equal_rows_of_1": same,
            "rows_after_kills_equal_undisturbed_rows": unbroken,
        },
        rows=[row_of(m, "explain", "explanations_per_second", rate) for m, rate in values.items()],
        figures={
            **{f"explanations_per_second_{method}": rate for method, rate in values.items()},
            "kills": killed,
            "lost_rows": lost,
            "doubled_rows": doubled,
            "speedup_2_processes": alone / pair,
        },
        seeds=[SEED],
    )


if __name__ == "__main__":
    main(started(PARSER))
