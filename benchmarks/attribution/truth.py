"""True values of the comparison: exact Shapley values, or unbiased ones with their error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.attribution.case import REMOVAL, Case
from benchmarks.attribution.masked_function import Floats, Function
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.numerics import last_members
from llm_influence.types import BoolArray


def coalition_table(function: Function) -> Floats:
    """(2^E,) values of all coalitions: event e is bit e of a value's place. E up to about 12."""
    return function((np.arange(2**function.size)[:, None] >> np.arange(function.size)) & 1 == 1)


def relative_rmse(scores: Floats, truth: Floats) -> float:
    """Root mean square error divided by the standard deviation of the true values."""
    return float(np.sqrt(np.mean((scores - truth) ** 2)) / np.std(truth))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Shapley values of a long history, and how far they may be wrong.

    Attributes:
        scores: (E,) unbiased estimates.
        error: Their standard errors' root mean square, divided by the scores' standard deviation.
    """

    scores: Floats
    error: float


def long_estimate(case: Case, evaluations: int, seed: int) -> Estimate:
    """Permutations of what a fitted game of pairs leaves unexplained.

    The fitted game's own Shapley values are a closed form and those of the rest are drawn without
    bias, so the sum is unbiased however bad the fit, and the better the fit, the smaller its
    standard error (control variates). It has nothing in common with our default estimator.

    Args:
        case: The history.
        evaluations: Coalitions to fit on, and about as many again for the permutations.
        seed: Of both draws.
    """
    read = ValueFunction(case.model, [case.history], case.target, REMOVAL)
    size, draw = len(case.history), np.random.default_rng([seed, 1])
    orders = [draw.permutation(size) for _ in range(evaluations // (size + 1))]
    masks = np.concatenate([_prefixes(order) for order in orders])
    fitted = PairGame.fit(masks, read([masks])[0])
    rest = RestFunction(size, read, fitted)
    mean, standard_error = permutation_shapley(rest, evaluations, seed)
    scores = fitted.shapley() + mean
    error = np.sqrt(np.mean(standard_error**2)) / np.std(scores)
    return Estimate(scores, float(error))


@dataclass(frozen=True, slots=True, eq=False)
class PairGame:
    """Pairs of events count, and more or less so if the later one is the last that is kept.

    ``S -> sum of together[i, j] over i <= j in S + sum of ended[i, j] over i in S``, where j is the
    last of S: a sequence model reads its answer off the end.

    Attributes:
        together: (E, E) worth of each pair on and above the diagonal; on it, of single events.
        ended: (E, E) the same for pairs whose second is the last.
    """

    together: Floats
    ended: Floats

    @classmethod
    def fit(cls, masks: BoolArray, values: Floats, ridge: float = 1.0) -> PairGame:
        """Ridge regression on (M, E) masks and their (M,) values."""
        size = masks.shape[1]
        terms = cls._terms(masks)
        centred, mean = terms - terms.mean(axis=0), values.mean()
        square = centred.T @ centred + ridge * np.eye(terms.shape[1])
        found = np.zeros((2, size, size))
        upper = np.triu_indices(size)
        found[:, *upper] = np.linalg.solve(square, centred.T @ (values - mean)).reshape(2, -1)
        return cls(*found)

    @staticmethod
    def _terms(masks: BoolArray) -> Floats:
        first, second = np.triu_indices(masks.shape[1])
        both = masks[:, first] & masks[:, second]
        return np.column_stack([both, both & (last_members(masks)[:, None] == second)]).astype(
            float
        )

    def values(self, masks: BoolArray) -> Floats:
        """(M,) values of (M, E) masks, but for a constant."""
        upper = np.triu_indices(len(self.together))
        return self._terms(masks) @ np.concatenate([self.together[upper], self.ended[upper]])

    def shapley(self) -> Floats:
        """(E,) Shapley values: in each term, those of the few players that it asks about."""
        size = len(self.together)
        scores = self.together.diagonal() + np.triu(self.together, 1).sum(0) / 2
        scores = scores + np.triu(self.together, 1).sum(1) / 2
        later = size - 1 - np.arange(size)  # players whose absence a term of `ended` asks for
        alone, paired = self.ended.diagonal(), np.triu(self.ended, 1)
        share = paired / ((later + 2) * (later + 1))
        scores = scores + alone / (later + 1) + share.sum(0) + share.sum(1)
        lost = (alone / (later + 1) + 2 * share.sum(0)) / np.maximum(later, 1)
        return scores - np.append(0.0, np.cumsum(lost)[:-1])


class RestFunction(Function):
    """What a fitted game leaves of the model's values."""

    def __init__(self, size: int, read: ValueFunction, fitted: PairGame) -> None:
        super().__init__(size)
        self._read, self._fitted = read, fitted

    def values(self, masks: BoolArray) -> Floats:
        """The model's values without those of the fitted game."""
        return self._read([masks])[0] - self._fitted.values(masks)


def permutation_shapley(function: Function, evaluations: int, seed: int) -> tuple[Floats, Floats]:
    """(E,) means and (E,) standard errors over antithetic pairs of permutations.

    Castro et al. 2009, doi:10.1016/j.cor.2008.04.004; a pair costs 2E evaluations.
    """
    size, draw = function.size, np.random.default_rng(seed)
    pairs = max(2, evaluations // (2 * size))
    orders = [draw.permutation(size) for _ in range(pairs)]
    values = function(np.concatenate([_prefixes(o) for one in orders for o in (one, one[::-1])]))
    gains = np.diff(values.reshape(pairs, 2, size + 1))
    places = np.array([[np.argsort(one), np.argsort(one[::-1])] for one in orders])
    draws = np.take_along_axis(gains, places, axis=2).mean(axis=1)
    return draws.mean(axis=0), draws.std(axis=0, ddof=1) / np.sqrt(pairs)


def _prefixes(order: np.ndarray) -> BoolArray:
    """(E + 1, E) coalitions as events come in this order, from none to all."""
    return np.arange(len(order) + 1)[:, None] > np.argsort(order)
