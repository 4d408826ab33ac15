"""From the answers of every system to the rows and figures of a comparison with peers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.harness import Row
from benchmarks.peer_runs import OURS, Result, read_seeds, read_trials
from benchmarks.statistics import Floats, auc_draws, compared, mean_draws, mean_interval
from llm_influence.evaluation.metrics import ndcg_of_rows
from llm_influence.numerics import percentiles

INTERVAL = (
    "value, low, high over seeds: mean and Student's 95% interval; against the best peer: paired "
    "bootstrap of users (cases, households) with all their examples, answers averaged over seeds"
)


@dataclass(frozen=True)
class System:
    """One system's answers to the test examples.

    Attributes:
        name: Of the system.
        metrics: Test metrics of each of S seeds.
        draws: (D,) its main metric under draws of users, mean over seeds; empty where the answers
            of an earlier measurement were not kept.
        runs: The record of each seed; empty where there is none.
        validation: The main metric on validation, where no record has it.
        interval: Interval of the main metric over users, where the answers were not kept.
    """

    name: str
    metrics: list[dict[str, float]]
    draws: Floats
    runs: Sequence[Result] = field(default_factory=tuple)
    validation: float | None = None
    interval: Sequence[float] = ()

    def mean(self, metric: str) -> float:
        """Mean of a test metric over seeds."""
        return float(np.mean([each[metric] for each in self.metrics]))


Measure = Callable[[np.ndarray], dict[str, float]]


def of_means(
    name: str, rows: Floats, users: np.ndarray, metric: str, *, draws: int = 2000, **more: object
) -> System:
    """A system whose main metric is the mean of (S, N) rows, as NDCG@10 or accuracy."""
    metrics = [{metric: float(value)} for value in rows.mean(axis=1)]
    return System(name, metrics, mean_draws(rows.mean(axis=0)[None], users, draws)[0], **more)


def of_ranks(
    name: str, ranks: np.ndarray, users: np.ndarray, measure: Measure, **more: object
) -> System:
    """A system whose main metric is the NDCG@10 of (S, N) ranks."""
    rows = ndcg_of_rows(ranks).mean(axis=0)
    draws = mean_draws(rows[None], users, 10_000)[0]
    return System(name, [measure(row) for row in ranks], draws, **more)


def of_scores(
    name: str,
    scores: Floats,
    labels: np.ndarray,
    users: np.ndarray,
    measure: Measure,
    **more: object,
) -> System:
    """A system whose main metric is the AUC of (S, N) scores for (N,) labels."""
    draws = np.mean([auc_draws(labels == 1, row, users) for row in scores], axis=0)
    return System(name, [measure(row) for row in scores], draws, **more)


def read_systems(
    folder: Path,
    names: Sequence[str],
    column: str,
    make: Callable[..., System],
    earlier: Mapping[str, System] | None = None,
) -> list[System]:
    """The systems that have finished runs in a folder.

    Args:
        folder: Of the bench.
        names: Of all systems, ours first.
        column: Of the answers: ``ranks`` or ``scores``.
        make: From a name, its (S, N) answers and ``runs=`` to the system.
        earlier: Systems that are used where the folder has no finished run.

    Raises:
        ValueError: Ours or every peer is missing.
    """
    read = {name: read_seeds(folder / name, column) for name in names}
    known = dict(earlier or {})
    known |= {name: make(name, rows, runs=runs) for name, (runs, rows) in read.items() if runs}
    systems = [known[name] for name in names if name in known]
    found = [system.name for system in systems]
    if OURS not in found or len(found) < 2:
        raise ValueError(f"{folder} has finished runs of {found} only")
    return systems


def earlier_systems(path: Path, metric: str) -> dict[str, System]:
    """The systems of a benchmark's file, without their answers: means, seconds and curves.

    Args:
        path: The file; empty if there is none.
        metric: The main one, whose curve on validation is kept.
    """
    if not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))["rows"]
    tested = [
        row for row in table if row.get("split") == "test" and " against " not in row["system"]
    ]
    systems = {}
    for name in dict.fromkeys(row["system"] for row in tested):
        every = [row for row in tested if row["system"] == name]
        own = [row for row in every if "seed" in row] or every
        only = next((row["seed"] for row in table if row["system"] == name and "seed" in row), 0)
        runs, metrics = {}, {}
        for row in own:
            seed = row.get("seed", only)
            metrics.setdefault(seed, {})[row["metric"]] = row["value"]
            spent = {f"train_{key}": row[key] for key in row if key.startswith("seconds")}
            runs[seed] = {"seed": seed, **spent, "epochs": []}
        for row in table:
            if row["system"] == name and row["metric"] == metric and "epoch" in row:
                epoch = {"epoch": row["epoch"], "train_seconds": row["seconds"]}
                runs[row["seed"]]["epochs"].append({**epoch, metric: row["value"]})
        intervals = [
            (row["low"], row["high"]) for row in every if row["metric"] == metric and "low" in row
        ]
        systems[name] = System(
            name,
            list(metrics.values()),
            np.empty(0),
            list(runs.values()),
            interval=intervals[0] if intervals else (),
        )
    return systems


def report(
    systems: Sequence[System],
    metric: str,
    *,
    folder: Path | None = None,
    by_users: bool = False,
    more: Row | None = None,
) -> tuple[list[Row], Row, System]:
    """Rows, figures and the best peer.

    Args:
        systems: Ours first. A name that begins with `OURS` is no peer.
        metric: The main one.
        folder: Of the bench, whose trials become rows.
        by_users: The interval of the main metric is over users and not over seeds.
        more: Further columns of every row.
    """
    ours, peers = systems[0], [one for one in systems if not one.name.startswith(OURS)]
    best = max(peers, key=lambda peer: peer.mean(metric))
    rows = [row for system in systems for row in _system_rows(system, metric, by_users=by_users)]
    for peer in peers if by_users else [best]:
        for kind, interval in zip(
            ("difference", "ratio"), _against(ours, peer, metric), strict=True
        ):
            named: Row = {"system": f"{OURS} against {peer.name}", "split": "test"}
            rows.append({**named, "metric": f"{metric} {kind}", **_ends(interval)})
    if folder is not None:
        rows += [row for peer in peers for row in trial_rows(folder, peer.name, metric)]
    difference, ratio = _against(ours, best, metric)
    figures: Row = {
        "value": ours.mean(metric),
        "best_peer_value": best.mean(metric),
        "ratio_to_best_peer": ratio[0],
    }
    if len(ratio) > 1:
        figures |= {"ratio_to_best_peer_low": ratio[1], "ratio_to_best_peer_high": ratio[2]}
        figures |= {"difference_low": difference[1], "difference_high": difference[2]}
    return [{**row, **(more or {})} for row in rows], figures, best


def _against(
    ours: System, peer: System, metric: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Difference and ratio, with their intervals if the answers of both are known."""
    values = (ours.mean(metric), peer.mean(metric))
    if not len(ours.draws) or not len(peer.draws):
        return (values[0] - values[1],), (values[0] / values[1],)
    return compared(*values, ours.draws, peer.draws)


def _ends(interval: Sequence[float]) -> Row:
    return dict(zip(("value", "low", "high"), interval, strict=False))


def _system_rows(system: System, main: str, *, by_users: bool) -> Iterator[Row]:
    """Test metrics over seeds and of each seed, then the curve on validation."""
    test: Row = {"system": system.name, "split": "test"}
    timed = [run["train_seconds"] for run in system.runs if "train_seconds" in run]
    seconds: Row = {"seconds": float(np.mean(timed))} if timed else {}
    for metric in system.metrics[0]:
        values = [each[metric] for each in system.metrics]
        over: Row = {**test, "metric": metric, "value": float(np.mean(values)), **seconds}
        if by_users and metric == main:
            interval = percentiles(system.draws) if len(system.draws) else system.interval
            over |= dict(zip(("low", "high"), interval, strict=False))
        elif len(values) > 1:
            over |= _ends(mean_interval(values))
        yield {**over, "seeds": len(values)}
        for seed, value in enumerate(values if len(values) > 1 else ()):
            run = system.runs[seed] if system.runs else {}
            spent = {
                f"seconds{end}": run[f"train_seconds{end}"]
                for end in ("", "_to_best")
                if f"train_seconds{end}" in run
            }
            yield {**test, "metric": metric, "value": value, "seed": run.get("seed", seed), **spent}
    curve = test | {"split": "validation", "metric": main}
    for run in system.runs:
        for epoch in run.get("epochs", ()):
            place = {"seed": run["seed"], "epoch": epoch["epoch"]}
            yield {**curve, "value": epoch[main], **place, "seconds": epoch["train_seconds"]}
    if system.validation is not None:
        yield {**curve, "value": system.validation}


def trial_rows(folder: Path, name: str, metric: str) -> Iterator[Row]:
    """The settings tried of a peer, and the metric of each on validation."""
    for number, trial in enumerate(read_trials(folder / name)):
        yield {
            "system": name,
            "split": "validation",
            "metric": f"{metric} of a setting",
            "value": trial[f"validation_{metric}"],
            "seconds": trial["train_seconds"],
            "trial": number,
            "setting": json.dumps(trial["settings"]),
        }


def seeds_of(systems: Sequence[System]) -> list[int]:
    """All seeds of all runs."""
    return sorted({int(str(run["seed"])) for system in systems for run in system.runs})


def peer_versions(systems: Sequence[System]) -> dict[str, str]:
    """Versions of the peers' own environment, marked as such."""
    found = [run["versions"] for system in systems for run in system.runs if "versions" in run]
    return {f"{package} (peers)": version for package, version in (found or [{}])[0].items()}
