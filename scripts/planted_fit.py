"""From influences back to the law: behaviour weights and half-life by least squares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from llm_influence.data.law import Law
from llm_influence.data.planted import Truth
from llm_influence.types import FloatArray


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


def fit_law(truth: Truth, scores: Sequence[FloatArray], users: Iterable[int]) -> FittedLaw:
    """Fit ``influence = weight(behaviour) x 2^(-age / half-life) x side`` to a method's scores.

    ``side`` is read off the item table: +1 for an event in the cluster of the chosen item, -1 in
    that of the other, 0 in any else. For every half-life the best weights are a linear least
    squares, so one number is searched.
    """
    clusters = truth.log.catalogue.table["cluster"].to_numpy()
    columns: list[tuple[FloatArray, ...]] = []
    for user in users:
        history = truth.history(user)
        own = clusters[history.items]
        chosen, other = clusters[truth.targets[user]], clusters[truth.others[user]]
        side = 1.0 * (own == chosen) - 1.0 * (own == other)
        ages = history.timestamps[-1] - history.timestamps
        columns.append((scores[user], side, ages, history.behaviors))
    score, side, age, behavior = (np.concatenate(part) for part in zip(*columns, strict=True))
    kinds = side[:, None] * (behavior[:, None] == np.arange(len(truth.law.behaviors)))

    def solve(log_half_life: float) -> tuple[FloatArray, float]:
        design = kinds * 0.5 ** (age / np.exp(log_half_life))[:, None]
        weights = np.linalg.lstsq(design, score)[0]
        return weights, float(((design @ weights - score) ** 2).sum())

    bounds = (np.log(60.0), np.log(365 * 86_400.0))
    best = minimize_scalar(lambda x: solve(x)[1], bounds=bounds, method="bounded").x
    weights = solve(best)[0]
    weights = weights / np.abs(weights).max()
    named = dict(zip(truth.law.behaviors, weights.tolist(), strict=True))
    return FittedLaw(named, float(np.exp(best)))
