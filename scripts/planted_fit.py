"""From influences back to the law: behaviour weights and half-life by least squares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from llm_influence.data.law import Law
from llm_influence.data.planted import Truth
from llm_influence.types import FloatArray, IntArray

ROUNDS = 20
"""Of the alternation between the law and the histories' scales; it settles in a few."""
SHORTEST, LONGEST = 60.0, 365 * 86_400.0
"""Half-lives, in seconds, between which one is sought."""


@dataclass(frozen=True)
class FittedLaw:
    """What the influences say about the law.

    Attributes:
        weights: Of each behaviour, the largest being 1.
        half_life: In seconds.
    """

    weights: dict[str, float]
    half_life: float

    def errors(self, law: Law) -> dict[str, float]:
        """The largest error of a weight (both largest weights being 1), the half-life's share."""
        true = law.weights / np.abs(law.weights).max()
        ours = np.array([self.weights[name] for name in law.behaviors])
        return {
            "behavior_weight_error": float(np.abs(ours - true).max()),
            "half_life_error": abs(self.half_life / law.half_life - 1),
        }


@dataclass(frozen=True)
class _Events:
    """The events of all fitted histories, (S,) each."""

    history: IntArray
    score: FloatArray
    side: FloatArray
    age: IntArray
    behavior: IntArray


def fit_law(truth: Truth, scores: Sequence[FloatArray], users: Iterable[int]) -> FittedLaw:
    """Fit ``scale(history) x weight(behaviour) x 2^(-age / half-life) x side`` to scores.

    ``side`` is read off the item table: +1 for an event in the cluster of the chosen item, -1 in
    that of the other, 0 in any else. Each history has a scale of its own: where a model is nearly
    sure it gives all events less, and sure it is where the recent events agree, so that one
    scale for all would make the recent events look older than they are. Scales and law are fitted
    in turn; for every half-life the best weights are a linear least squares.
    """
    events = _events(truth, scores, users)
    scale = np.ones(int(events.history.max()) + 1)
    for _ in range(ROUNDS):
        weights, half_life = _fit(events, scale[events.history], len(truth.law.behaviors))
        alike = events.side * weights[events.behavior] * 0.5 ** (events.age / half_life)
        known = np.bincount(events.history, alike**2)
        found = np.bincount(events.history, alike * events.score)
        scale = np.divide(found, known, out=np.zeros_like(found), where=known > 0)
    weights = weights / np.abs(weights).max()
    return FittedLaw(dict(zip(truth.law.behaviors, weights.tolist(), strict=True)), half_life)


def _events(truth: Truth, scores: Sequence[FloatArray], users: Iterable[int]) -> _Events:
    clusters = truth.log.catalogue.table["cluster"].to_numpy()
    columns: list[tuple[np.ndarray, ...]] = []
    for place, user in enumerate(users):
        history = truth.history(user)
        own = clusters[history.items]
        chosen, other = clusters[truth.targets[user]], clusters[truth.others[user]]
        side = 1.0 * (own == chosen) - 1.0 * (own == other)
        ages = history.timestamps[-1] - history.timestamps
        row = np.full(len(history), place)
        columns.append((row, scores[user], side, ages, history.behaviors))
    return _Events(*(np.concatenate(part) for part in zip(*columns, strict=True)))


def _fit(events: _Events, scale: FloatArray, behaviors: int) -> tuple[FloatArray, float]:
    """Weights (B,) and half-life under known scales (S,)."""
    kinds = events.behavior[:, None] == np.arange(behaviors)
    kinds = kinds * (scale * events.side)[:, None]

    def solve(log_half_life: float) -> tuple[FloatArray, float]:
        design = kinds * 0.5 ** (events.age / np.exp(log_half_life))[:, None]
        weights = np.linalg.lstsq(design, events.score)[0]
        return weights, float(((design @ weights - events.score) ** 2).sum())

    bounds = (np.log(SHORTEST), np.log(LONGEST))
    best = minimize_scalar(lambda x: solve(x)[1], bounds=bounds, method="bounded").x
    return solve(best)[0], float(np.exp(best))
