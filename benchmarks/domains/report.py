"""From what every system answered to the rows and figures of docs/domains's benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.harness import Scalar
from benchmarks.statistics import Floats, Interval, mean_interval
from llm_influence.evaluation.bootstrap import percentiles, resampled_means
from llm_influence.types import IntArray

Row = dict[str, Scalar]
DRAWS = 2000

INTERVAL = (
    "value, low, high over seeds: mean and Student's 95% interval; against the best peer: paired "
    "bootstrap of users (cases, households) with all their examples, answers averaged over seeds"
)


@dataclass(frozen=True)
class Measured:
    """One system's answers to the test examples.

    Attributes:
        name: Of the system.
        answers: (S, N) one row a seed: gains of the N examples, or scores.
        values: (S,) the metric of each seed.
        validation: The metric of the chosen setting on validation, seed by seed or tuning's best.
    """

    name: str
    answers: Floats
    values: list[float]
    validation: float | None = None

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))


def of_gains(name: str, gains: Floats, validation: float | None = None) -> Measured:
    """A system whose metric is the mean of (S, N) gains, as NDCG@10 or accuracy."""
    return Measured(name, gains, [float(value) for value in gains.mean(axis=1)], validation)


def of_scores(
    name: str, scores: Floats, labels: IntArray, validation: float | None = None
) -> Measured:
    """A system whose metric is the AUC of (S, N) scores for (N,) labels."""
    values = [float(roc_auc_score(labels, row)) for row in scores]
    return Measured(name, scores, values, validation)


def report(
    ours: Measured,
    peers: list[Measured],
    users: IntArray,
    *,
    metric: str,
    labels: IntArray | None = None,
) -> tuple[list[Row], dict[str, Scalar], str]:
    """Rows, figures and the best peer's name.

    Args:
        ours: Our answers.
        peers: Everyone else's.
        users: (N,) whose question it is.
        metric: Its name.
        labels: (N,) of an AUC; None for a mean of gains.
    """
    best = max(peers, key=lambda peer: peer.value)
    compare = _means if labels is None else _areas
    difference, ratio = compare(ours, best, users, labels)
    rows = [row for system in (ours, *peers) for row in _rows(system, metric)]
    rows += [
        {"system": f"{ours.name} against {best.name}", "split": "test"}
        | {"metric": f"{metric} {kind}", "value": value, "low": low, "high": high}
        for kind, (value, low, high) in (("difference", difference), ("ratio", ratio))
    ]
    figures: dict[str, Scalar] = {
        "value": ours.value,
        "best_peer_value": best.value,
        "ratio_to_best_peer": ratio[0],
        "ratio_to_best_peer_low": ratio[1],
        "ratio_to_best_peer_high": ratio[2],
        "difference_low": difference[1],
        "difference_high": difference[2],
    }
    return rows, figures, best.name


def _rows(system: Measured, metric: str) -> Iterator[Row]:
    test: Row = {"system": system.name, "split": "test", "metric": metric}
    if len(system.values) > 1:
        mean, low, high = mean_interval(system.values)
        yield {**test, "value": mean, "low": low, "high": high, "seeds": len(system.values)}
    for seed, value in enumerate(system.values):
        yield {**test, "value": value, "seed": seed}
    if system.validation is not None:
        yield {**test, "split": "validation", "value": system.validation}


def _means(
    ours: Measured, best: Measured, users: IntArray, labels: IntArray | None
) -> tuple[Interval, Interval]:
    del labels  # a mean has none
    columns = [ours.answers.mean(axis=0), best.answers.mean(axis=0)]
    one, other = resampled_means(columns, users, draws=DRAWS)
    return _compared(ours.value, best.value, one, other)


def _areas(
    ours: Measured, best: Measured, users: IntArray, labels: IntArray | None
) -> tuple[Interval, Interval]:
    """AUCs of drawn users, a seed's after the other's, averaged as the values are."""
    draw, groups = np.random.default_rng(0), np.unique(users, return_inverse=True)[1]
    size, found = int(groups.max()) + 1, []
    for _ in range(DRAWS):
        weights = np.bincount(draw.integers(size, size=size), minlength=size)[groups]
        found.append([_area(system.answers, labels, weights) for system in (ours, best)])
    one, other = np.array(found).T
    return _compared(ours.value, best.value, one, other)


def _area(scores: Floats, labels: IntArray | None, weights: IntArray) -> float:
    return float(np.mean([roc_auc_score(labels, row, sample_weight=weights) for row in scores]))


def _compared(ours: float, best: float, one: Floats, other: Floats) -> tuple[Interval, Interval]:
    return (
        (ours - best, *percentiles(one - other)),
        (ours / best, *percentiles(one / other)),
    )


def trial_rows(name: str, trials: list[Mapping[str, object]], metric: str) -> list[Row]:
    """What was tried of a peer, and what came of it on validation."""
    return [
        {"system": name, "split": "validation", "metric": f"{metric} of a setting"}
        | {"value": float(str(trial["validation"])), "trial": number}
        | {"setting": str(trial["settings"]), "seconds": float(str(trial["train_seconds"]))}
        for number, trial in enumerate(trials)
    ]
