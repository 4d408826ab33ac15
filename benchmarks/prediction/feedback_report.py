"""From finished runs to docs/benchmarks/feedback_ml100k.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.feedback_intervals import auc_draws
from benchmarks.harness import Scalar, write_benchmark
from benchmarks.peer_runs import Result, read_trials
from benchmarks.peers.click_settings import LIKED_FROM, PROGRAMS
from benchmarks.prediction.feedback_baselines import REFERENCES
from benchmarks.prediction.feedback_heads import joint_rows
from benchmarks.prediction.feedback_runs import AUC, OURS, FeedbackBench, measure, read_seeds
from benchmarks.statistics import mean_interval
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.bootstrap import percentiles

SYSTEMS = (OURS, *PROGRAMS, *REFERENCES)
DRAWS = 2000

Row = dict[str, Scalar]

PROTOCOL = {
    "question": f"will the user rate this film {LIKED_FROM:g} or more, given all that was rated "
    "before and the moment; the film is the one that the user did rate",
    "split": "of users with 21 ratings or more, the last 10 are tested and the 10 before them "
    "validate, each with every event before it as its history; the rest trains",
    "trained_on": "training events alone; the history of a test question includes validation",
    "tree": "HistGradientBoostingClassifier on hand features (benchmarks/peers/tree_features.py): of "
    "a film by training events, earlier ones alone or those of other users (tuned); of a user by "
    "the events before the question",
    "lstm": "plain torch: LSTM or GRU over films, ratings and gaps, the candidate and the state "
    "through a small network (benchmarks/peers/lstm_peer.py)",
    "din": "RecBole's DIN; an item of its history is a film with its rating, features are film, "
    "rating and genres, because RecBole's DIN reads items alone (benchmarks/peers/din_peer.py)",
    "references": "shares of likes of the film (training) and of the user (history of the "
    "question), shrunk; logistic regression on both biases (training); shrinkage chosen on "
    "validation",
    "peers": "setting chosen on validation AUC, seed 0, the same budget of trials and training "
    "seconds each; test is not read until the setting is chosen, then once a seed",
    "epoch": "chosen on validation AUC by every system",
    "gauc": "AUC within a user, averaged by rows over users with both labels. A user's ten "
    "examples follow one another, so whoever reads the first answers is marked down: a like seen "
    "raises the mean and leaves fewer of the ten. Compare systems that read as much",
    "ece": "expected calibration error, 15 bins of equal mass",
    "core": "one core, one thread, every system",
    "seconds": "training until the run stopped, without imports, data and validation; of peers and "
    "references: seconds of the processor; of ours: clock time without validations",
    "interval": f"AUC: {DRAWS} bootstrap draws of users, every draw's AUC being the mean over "
    "seeds; against the best peer: the same draws for both; other metrics: Student's over seeds",
}


@dataclass(frozen=True)
class System:
    """The finished seeds of one system.

    Attributes:
        name: Its name.
        runs: One result a seed.
        metrics: Test metrics of every seed.
        draws: (draws,) test AUC over resampled users, mean over seeds.
    """

    name: str
    runs: list[Result]
    metrics: list[dict[str, float]]
    draws: np.ndarray

    def mean(self, metric: str = AUC) -> float:
        """Mean of a test metric over seeds."""
        return float(np.mean([found[metric] for found in self.metrics]))


def write_report(bench: FeedbackBench, path: Path) -> None:
    """Gather all finished runs and write the benchmark's file.

    Raises:
        ValueError: Ours or every tuned peer is missing.
    """
    test = bench.split().test
    found = [_system(bench, name, test) for name in SYSTEMS]
    systems = [system for system in found if system is not None]
    peers = [system for system in systems if system.name != OURS]
    if len(peers) == len(systems) or not any(peer.name in PROGRAMS for peer in peers):
        raise ValueError(f"{bench.folder}: runs of {[system.name for system in systems]} alone")
    ours, best = systems[0], max(peers, key=System.mean)
    joint = list(joint_rows(bench, test))
    rows = [row for system in systems for row in _rows(system)]
    rows += [row for peer in peers for row in _against(ours, peer)]
    rows += [row for peer in peers for row in _tuning_rows(bench, peer.name)]
    write_benchmark(
        path,
        name="feedback_ml100k",
        protocol=PROTOCOL
        | {"best_peer": best.name}
        | {"data": json.loads((bench.task / "split.json").read_text(encoding="utf-8"))},
        rows=[*rows, *joint],
        figures=_figures(ours, best, joint),
        seeds=sorted({int(str(run["seed"])) for system in systems for run in system.runs}),
        versions=_peer_versions(peers),
    )


def _figures(ours: System, best: System, joint: list[Row]) -> Row:
    low, high = percentiles(ours.draws / best.draws)
    figures: Row = {
        "value": ours.mean(),
        "best_peer_value": best.mean(),
        "ratio_to_best_peer": ours.mean() / best.mean(),
        "ratio_to_best_peer_low": low,
        "ratio_to_best_peer_high": high,
        **{f"{metric}_value": ours.mean(metric) for metric in ("gauc", "log_loss", "ece")},
        **{f"best_peer_{metric}": best.mean(metric) for metric in ("gauc", "log_loss", "ece")},
    }
    for row in joint:
        if "against" in str(row["system"]):
            head = str(row["system"]).split()[0]
            figures[f"joint_{head}_ratio"] = row["value"]
    return figures


def _system(bench: FeedbackBench, name: str, test: EvaluationSet) -> System | None:
    runs, scores = read_seeds(bench.folder / name)
    if not runs:
        return None
    liked = test.target_values >= LIKED_FROM
    draws = [auc_draws(liked, one, test.users, draws=DRAWS) for one in scores]
    return System(name, runs, [measure(test, one) for one in scores], np.mean(draws, axis=0))


def _rows(system: System) -> Iterator[Row]:
    """Test metrics over seeds and of each seed, then the curve on validation."""
    test: Row = {"system": system.name, "split": "test"}
    seconds = float(np.mean([float(str(run["train_seconds"])) for run in system.runs]))
    for metric in system.metrics[0]:
        values = [found[metric] for found in system.metrics]
        over: Row = {"value": float(np.mean(values)), "seconds": seconds, "seeds": len(values)}
        if metric == AUC:
            over["low"], over["high"] = percentiles(system.draws)
        elif len(values) > 1:
            _, over["low"], over["high"] = mean_interval(values)
        yield {**test, "metric": metric, **over}
        if len(values) > 1:
            for value, run in zip(values, system.runs, strict=True):
                yield {**test, "metric": metric, "value": value, "seed": int(str(run["seed"]))}
    for run in system.runs:
        for epoch in run["epochs"]:
            one = {"seed": run["seed"], "epoch": epoch["epoch"], "seconds": epoch["train_seconds"]}
            yield {**test, "split": "validation", "metric": AUC, "value": epoch[AUC], **one}


def _against(ours: System, peer: System) -> Iterator[Row]:
    """Difference and ratio of AUC, the same users drawn for both."""
    one, other = ours.mean(), peer.mean()
    for kind, value, draws in (
        ("difference", one - other, ours.draws - peer.draws),
        ("ratio", one / other, ours.draws / peer.draws),
    ):
        low, high = percentiles(draws)
        named: Row = {"system": f"{OURS} against {peer.name}", "split": "test"}
        yield {**named, "metric": f"{AUC} {kind}", "value": value, "low": low, "high": high}


def _tuning_rows(bench: FeedbackBench, name: str) -> Iterator[Row]:
    """What was tried of a peer, and what came of it."""
    for number, trial in enumerate(read_trials(bench.folder / name)):
        yield {
            "system": name,
            "split": "validation",
            "metric": f"{AUC} of a setting",
            "value": trial[f"validation_{AUC}"],
            "seconds": trial["train_seconds"],
            "trial": number,
            "setting": json.dumps(trial["settings"]),
        }


def _peer_versions(peers: list[System]) -> dict[str, str]:
    """Versions of the peers' own environment, marked as such."""
    found = [run["versions"] for peer in peers for run in peer.runs if "versions" in run]
    return {f"{package} (peers)": version for package, version in (found or [{}])[0].items()}
