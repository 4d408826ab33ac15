"""Pair interactions: what two events do together beyond what each does alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from llm_influence.attribution.coalitions import random_coalitions
from llm_influence.attribution.registry import Games, Task
from llm_influence.attribution.renderings import Removal
from llm_influence.attribution.target import TOP, Target, bind
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, FloatArray, History

FOLDS = 5
PENALTIES = np.logspace(-8, 3, 12)
PAIR = 0.3
"""Scale of a pair's column beside an event's: the penalty assumes that pairs are weaker."""


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Pair interactions of one history.

    Attributes:
        user_id: The user.
        pairs: (E, E) symmetric, zero diagonal: the Banzhaf interaction index of two events, the
            mean over all sets S of the others of
            ``f(S, i, j) - f(S, i) - f(S, j) + f(S)``, in log-odds. Positive: the two together are
            worth more than the sum of each. None where pairs do not improve the fit.
        additive_r2: Held-out R2 of the additive fit to f over random sets of events.
        pair_r2: The same with pairs; nan where there are too few events or sets to try.
        evaluations: Model evaluations.
    """

    user_id: str
    pairs: FloatArray | None
    additive_r2: float
    pair_r2: float
    evaluations: int


def interactions(
    model: InfluenceModel,
    histories: Sequence[History],
    target: Target = TOP,
    *,
    removal: Removal = "drop",
    seed: int = 0,
    evaluations: int = 256,
) -> list[Interactions]:
    """Pair interactions of every history, where pairs improve the fit.

    f is evaluated on random sets of events, each event in with probability one half, and fitted by
    ridge regression with and without a term for each pair; penalties by cross-validation. The
    quadratic that fits best over all sets has the Banzhaf interaction indices for coefficients
    (Hammer and Holzman 1992; Grabisch and Roubens 1999, doi:10.1007/s001820050125).

    Args:
        model: The model.
        histories: N histories.
        target: What is explained, see `Explainer.explain`.
        removal: What "without an event" means.
        seed: Seed of random draws, mixed with the user's id.
        evaluations: Sets to evaluate for each history, at least 10.

    Raises:
        ExplanationError: An unknown target.
    """
    with inference(model):
        bound = bind(target, model, histories)
        trimmed = [model.encoder.trim(history) for history in histories]
        task = Task(model, trimmed, bound, removal, seed)
        return fit_interactions(task, [history.user_id for history in histories], evaluations)


def fit_interactions(
    games: Games, users: Sequence[str], evaluations: int = 256
) -> list[Interactions]:
    """Pair interactions of N games; ``users`` are their names."""
    masks = [
        random_coalitions(draw, players, evaluations)
        for draw, players in zip(games.generators(), games.sizes, strict=True)
    ]
    values = games.values(masks)
    rows = zip(users, masks, values, games.values.evaluations, strict=True)
    return [
        Interactions(user, *pair_effects(mask, value), int(spent))
        for user, mask, value, spent in rows
    ]


def pair_effects(masks: BoolArray, values: FloatArray) -> tuple[FloatArray | None, float, float]:
    """(n, n) interactions or None, and the held-out R2 without and with pairs.

    Args:
        masks: (M, n) distinct coalitions drawn uniformly.
        values: (M,) their values.
    """
    events = masks - 0.5
    first, second = np.triu_indices(masks.shape[1], 1)
    if len(values) < 2 * FOLDS or not len(first) or np.ptp(values) == 0:
        return None, float("nan"), float("nan")
    both = np.column_stack([events, PAIR * 2 * events[:, first] * events[:, second]])
    additive, pairs = _held_out_r2(events, values), _held_out_r2(both, values)
    if pairs <= additive:
        return None, additive, pairs
    effects = np.zeros((masks.shape[1], masks.shape[1]))
    weights = RidgeCV(PENALTIES).fit(both, values).coef_[masks.shape[1] :]
    effects[first, second] = weights * PAIR * 2
    return effects + effects.T, additive, pairs


def _held_out_r2(features: FloatArray, values: FloatArray) -> float:
    folds = KFold(FOLDS)
    predicted = cross_val_predict(RidgeCV(PENALTIES), features, values, cv=folds)
    return float(1 - ((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum())
