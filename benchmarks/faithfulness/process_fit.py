"""From influences back to the generating process: behaviour weights and half-life.

The true influence of an event depends on the question of a method. Removed alone, it leaves all
ages as they are. Shapley values and weights at random halves of a history are about sets of events,
and a rendering of a set ends with its last event: there "now" is earlier, the rest is younger, and
old events get more than in the whole history. So the process is fitted by least squares through the
question: its own answer is compared with the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import minimize_scalar

from llm_influence.datasets.generating_process import GeneratingProcess
from llm_influence.datasets.planted import PlantedTruth
from llm_influence.numerics import every_coalition, shapley_weights
from llm_influence.types import BoolArray, FloatArray, IntArray

ROUNDS, SETTLED = 20, 1e-4
"""Of the alternation between process and scales: at most, and the relative change of the half-life
that ends it."""
SHORTEST, LONGEST = 60.0, 365 * 86_400.0
"""Half-lives, in seconds, between which one is sought."""


@dataclass(frozen=True)
class FittedProcess:
    """The generating process as the influences describe it.

    Attributes:
        weights: Of each behaviour, the largest being 1.
        half_life: In seconds.
    """

    weights: dict[str, float]
    half_life: float

    def errors(self, process: GeneratingProcess) -> dict[str, float]:
        """The largest error of a weight (both largest weights being 1), the half-life's share."""
        true = process.weights / np.abs(process.weights).max()
        ours = np.array([self.weights[name] for name in process.behaviors])
        return {
            "behavior_weight_error": float(np.abs(ours - true).max()),
            "half_life_error": abs(self.half_life / process.half_life - 1),
        }


@dataclass(frozen=True)
class Evidence:
    """The E events of one fitted history.

    Attributes:
        scores: (E,) what a method gave them.
        sides: (E, B) at the event's behaviour +1 in the cluster of the chosen item, -1 in that of
            the other one; 0 elsewhere.
        ages: (E,) seconds before the last event.
    """

    scores: FloatArray
    sides: FloatArray
    ages: IntArray


Question = Callable[[Evidence, float], FloatArray]
"""From a history and a half-life to (E, B): what each behaviour's weight adds to the scores."""


def alone(history: Evidence, half_life: float) -> FloatArray:
    """What an event gives to the whole history, all ages staying what they are."""
    return history.sides * _decay(history.ages, half_life)[:, None]


def shapley(history: Evidence, half_life: float) -> FloatArray:
    """Shapley values over sets of events, each with its last event as now."""
    return shapley_weights(_sets(len(history.ages))).T @ _of_sets(history, half_life)


def halves(history: Evidence, half_life: float) -> FloatArray:
    """Weights of the best linear model over all sets, each as likely as any other."""
    sets = _sets(len(history.ages))
    difference = np.where(sets, 2.0, -2.0) / len(sets)  # values with the event, less those without
    return difference.T @ _of_sets(history, half_life)


QUESTIONS: dict[str, Question] = {
    **dict.fromkeys(("shapley", "exact_shapley", "permutation_shapley", "coarse_to_fine"), shapley),
    "sparse_surrogate": halves,
}
"""The question of a method that drops several events at once; that of all others is `alone`."""


def fit_process(
    truth: PlantedTruth,
    scores: Sequence[FloatArray],
    users: Iterable[int],
    question: Question = alone,
) -> FittedProcess:
    """Fit ``scale(history) x question(process)`` to scores by least squares.

    Each history has its own scale: a model that is nearly sure gives all events less, and it is
    sure where the recent events agree. One scale for all would make the recent events look older.
    Scales and process are fitted in turn; for every half-life the best weights are a linear least
    squares.

    Args:
        truth: The log of the process; only items, clusters, behaviours and times are read.
        scores: (E,) of every user, by number; those of ``users`` are read.
        users: Whose histories are fitted.
        question: What the scores are answers to: `alone`, `shapley` or `halves`.
    """
    histories = list(_evidence(truth, scores, users))
    scales, before = np.ones(len(histories)), np.inf
    for _ in range(ROUNDS):
        weights, half_life = _fit(histories, scales, question)
        alike = [question(history, half_life) @ weights for history in histories]
        norms = np.array([row @ row for row in alike])
        products = np.array([row @ h.scores for row, h in zip(alike, histories, strict=True)])
        scales = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        if abs(half_life / before - 1) < SETTLED:
            break
        before = half_life
    weights = weights / np.abs(weights).max()
    return FittedProcess(
        dict(zip(truth.process.behaviors, weights.tolist(), strict=True)), half_life
    )


def _evidence(
    truth: PlantedTruth, scores: Sequence[FloatArray], users: Iterable[int]
) -> Iterator[Evidence]:
    clusters = truth.log.catalogue.table["cluster"].to_numpy()
    kinds = np.eye(len(truth.process.behaviors))
    for user in users:
        history = truth.history(user)
        own = clusters[history.items]
        chosen, other = clusters[truth.targets[user]], clusters[truth.others[user]]
        side = 1.0 * (own == chosen) - 1.0 * (own == other)
        ages = history.timestamps[-1] - history.timestamps
        yield Evidence(scores[user], side[:, None] * kinds[history.behaviors], ages)


def _fit(
    histories: Sequence[Evidence], scales: FloatArray, question: Question
) -> tuple[FloatArray, float]:
    """Weights (B,) and half-life under known scales, one a history."""
    score = np.concatenate([history.scores for history in histories])

    def solve(log_half_life: float) -> tuple[FloatArray, float]:
        answers = [question(history, np.exp(log_half_life)) for history in histories]
        design = np.concatenate([s * each for s, each in zip(scales, answers, strict=True)])
        weights = np.linalg.lstsq(design, score)[0]
        return weights, float(((design @ weights - score) ** 2).sum())

    bounds = (np.log(SHORTEST), np.log(LONGEST))
    best = minimize_scalar(lambda x: solve(x)[1], bounds=bounds, method="bounded").x
    return solve(best)[0], float(np.exp(best))


@cache
def _sets(events: int) -> BoolArray:
    return every_coalition(events)


def _of_sets(history: Evidence, half_life: float) -> FloatArray:
    """(2^E, B) what each behaviour's weight adds to the target with the events of each set."""
    kept = _sets(len(history.ages))
    now = np.where(kept, history.ages, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    passed = np.maximum(history.ages - now, 0)
    return (kept * _decay(passed, half_life)) @ history.sides


def _decay(ages: IntArray, half_life: float) -> FloatArray:
    decay: FloatArray = 0.5 ** (ages / half_life)
    return decay
