"""From finished runs to docs/benchmarks/prediction_<task>.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import Scalar, write_benchmark
from benchmarks.peer_runs import Result, read_trials
from benchmarks.prediction.next_item_runs import NDCG, OURS, Bench, metrics_of, read_runs
from benchmarks.statistics import Floats, mean_interval, paired_bootstrap
from llm_influence.evaluation.metrics import ndcg_of_rows

SYSTEMS = (OURS, "sasrec", "bert4rec", "gru4rec", "item-knn", "popularity")
CURVE_FROM = 60.0
"""Seconds of training from which on the curves are compared."""

Row = dict[str, Scalar]

PROTOCOL = {
    "split": "leave-one-out: a user's last event is tested, the one before it validates",
    "candidates": "all items of the catalogue but those of the history (full ranking)",
    "equal_scores": "ordered by row of the catalogue, the same for all",
    "untrained_items": "a peer's items without a training event come last",
    "trained_on": "the training events alone; the history of a test row includes validation",
    "epoch": "chosen on validation NDCG@10 by every system, ours on ML-100K among half epochs; "
    "test ranked once, by that epoch",
    "peers": "setting chosen on validation, seed 0, the same budget of training seconds each",
    "core": "one core, one thread, every system",
    "precision": "peers: fp32; ours: train.precision auto, bf16 where the chip computes it",
    "seconds": "training until the run stopped, without imports, data and validation; of the "
    "peers, item-kNN and popularity: seconds of the processor; of ours: clock time without "
    "validations, an epoch's being its share of the steps",
    "seconds_to_best": "the same until the chosen epoch",
    "interval": "value, low, high over seeds: mean and Student's 95% interval; against the best "
    "peer: 10,000 paired bootstrap draws of users, a user's NDCG being the mean over seeds",
}


@dataclass(frozen=True)
class System:
    """The finished seeds of one system.

    Attributes:
        name: Its name.
        runs: One result a seed.
        ranks: (S, N) test ranks.
    """

    name: str
    runs: list[Result]
    ranks: np.ndarray

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Test metrics of every seed."""
        return [metrics_of(ranks) for ranks in self.ranks]

    def mean(self, metric: str) -> float:
        """Mean of a test metric over seeds."""
        return float(np.mean([found[metric] for found in self.metrics]))

    def best_so_far(self, seconds: Floats) -> Floats:
        """(T,) best validation NDCG@10 within so many seconds of training, mean over seeds."""
        found = [
            [
                max([e[NDCG] for e in run["epochs"] if e["train_seconds"] <= moment], default=0.0)
                for moment in seconds
            ]
            for run in self.runs
        ]
        return np.mean(found, axis=0)


def write_report(bench: Bench, path: Path) -> None:
    """Gather all finished runs of a task and write the benchmark's file.

    Raises:
        ValueError: Ours or every peer is missing.
    """
    found = [_system(bench, name) for name in SYSTEMS]
    systems = [system for system in found if system is not None]
    peers = [system for system in systems if system.name != OURS]
    if len(peers) == len(systems) or not peers:
        raise ValueError(f"{bench.folder}: runs of {[system.name for system in systems]} alone")
    ours, best = systems[0], max(peers, key=lambda peer: peer.mean(NDCG))
    difference, ratio = paired_bootstrap(
        ndcg_of_rows(ours.ranks).mean(axis=0), ndcg_of_rows(best.ranks).mean(axis=0)
    )
    rows = [row for system in systems for row in _rows(bench.task, system)]
    rows += [
        {"system": f"{OURS} against {best.name}", "task": bench.task, "split": "test"}
        | {"metric": f"{NDCG} {kind}", "value": value, "low": low, "high": high}
        for kind, (value, low, high) in (("difference", difference), ("ratio", ratio))
    ]
    rows += [row for peer in peers for row in _tuning_rows(bench, peer.name)]
    write_benchmark(
        path,
        name=f"prediction_{bench.task}",
        protocol=PROTOCOL
        | {"best_peer": best.name}
        | {"data": json.loads((bench.split / "split.json").read_text(encoding="utf-8"))},
        rows=rows,
        figures={
            "ndcg10": ours.mean(NDCG),
            "hr10": ours.mean("hr@10"),
            "best_peer_ndcg10": best.mean(NDCG),
            "best_peer_hr10": best.mean("hr@10"),
            "ratio_to_best_peer": ratio[0],
            "ratio_to_best_peer_low": ratio[1],
            "ratio_to_best_peer_high": ratio[2],
            "curve_lead_from_60_s": _curve_lead(ours, peers),
        },
        seeds=sorted({int(str(run["seed"])) for system in systems for run in system.runs}),
        versions=_peer_versions(peers),
    )


def _system(bench: Bench, name: str) -> System | None:
    found = read_runs(bench.folder / name)
    if not found:
        return None
    runs, ranks = zip(*found, strict=True)
    return System(name, list(runs), np.stack(ranks))


def _rows(task: str, system: System) -> Iterator[Row]:
    """Test metrics over seeds and of each seed, then the curve."""
    test: Row = {"system": system.name, "task": task, "split": "test"}
    seconds = float(np.mean([run["train_seconds"] for run in system.runs]))
    for metric in system.metrics[0]:
        values = [found[metric] for found in system.metrics]
        if len(values) > 1:
            mean, low, high = mean_interval(values)
            over = {"value": mean, "low": low, "high": high, "seconds": seconds}
            yield {**test, "metric": metric, **over, "seeds": len(values)}
        for value, run in zip(values, system.runs, strict=True):
            one = {key: run[key] for key in ("seed", "train_seconds", "train_seconds_to_best")}
            yield {**test, "metric": metric, "value": value, **_short(one)}
    curve = test | {"split": "validation", "metric": NDCG}
    for run in system.runs:
        for epoch in run["epochs"]:
            one = {"seed": run["seed"], **{key: epoch[key] for key in ("epoch", "train_seconds")}}
            yield {**curve, "value": epoch[NDCG], **_short(one)}


def _short(record: Row) -> Row:
    """The same with the names that rows have for seconds of training."""
    return {key.removeprefix("train_"): value for key, value in record.items()}


def _tuning_rows(bench: Bench, name: str) -> Iterator[Row]:
    """What was tried of a peer, and what came of it."""
    for number, trial in enumerate(read_trials(bench.folder / name)):
        yield {
            "system": name,
            "task": bench.task,
            "split": "validation",
            "metric": f"{NDCG} of a setting",
            "value": trial[f"validation_{NDCG}"],
            "seconds": trial["train_seconds"],
            "trial": number,
            "setting": json.dumps(trial["settings"]),
        }


def _curve_lead(ours: System, peers: list[System]) -> float:
    """The least lead of our curve over the highest peer's, from 60 s of training on.

    Curves are the best validation NDCG@10 so far; popularity and item-kNN have none.
    """
    curves = [system for system in peers if system.runs[0]["epochs"]]
    moments = {
        float(epoch["train_seconds"])
        for system in [ours, *curves]
        for run in system.runs
        for epoch in run["epochs"]
    }
    seconds = np.array(sorted({CURVE_FROM} | {m for m in moments if m > CURVE_FROM}))
    highest = np.max([system.best_so_far(seconds) for system in curves], axis=0)
    return float((ours.best_so_far(seconds) - highest).min())


def _peer_versions(peers: list[System]) -> dict[str, str]:
    """Versions of the peers' own environment, marked as such."""
    found = [run["versions"] for peer in peers for run in peer.runs if "versions" in run]
    return {f"{package} (peers)": version for package, version in (found or [{}])[0].items()}
