"""What the estimates are held against: exact Shapley values, or a long run that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np

from attribution_peers.case import Case
from attribution_peers.masked_function import Floats, Function


def coalition_table(function: Function) -> Floats:
    """(2^E,) values of all coalitions: event e is bit e of a value's place. E up to about 12."""
    return function((np.arange(2**function.size)[:, None] >> np.arange(function.size)) & 1 == 1)


def exact_shapley(table: Floats) -> Floats:
    """(E,) Shapley values from a (2^E,) table of coalitions (Shapley 1953)."""
    size, codes = int(table.size).bit_length() - 1, np.arange(table.size)
    weights = np.array([factorial(s) * factorial(size - s - 1) for s in range(size)])
    kept = np.array([code.bit_count() for code in codes.tolist()])
    scores = np.empty(size)
    for event in range(size):
        without = codes[codes >> event & 1 == 0]
        gains = table[without | 1 << event] - table[without]
        scores[event] = gains @ weights[kept[without]] / factorial(size)
    return scores


def relative_rmse(scores: Floats, truth: Floats) -> float:
    """Root mean square error divided by the standard deviation of the true values."""
    return float(np.sqrt(np.mean((scores - truth) ** 2)) / np.std(truth))


@dataclass(frozen=True, slots=True)
class Reference:
    """Shapley values of a long history, and how far they may be wrong.

    Attributes:
        scores: (E,) the mean of two independent long runs of the Shapley regression.
        error: Relative RMSE of that mean, from the difference of the two runs: half of it.
        bias: Mean over events of ``((reference - permutations) / standard error)^2``, where
            `permutations` is an unbiased estimate: about 1 if they differ by chance alone.
    """

    scores: Floats
    error: float
    bias: float


def long_reference(case: Case, token_budget: int, passes: int, seed: int) -> Reference:
    """Two runs of our Shapley regression with ``passes`` each, and permutations with as many.

    The regression (`surrogate="linear"`) shares neither the model of the game nor the choice of
    coalitions with our default estimator, so that it cannot favour it. The permutations go there
    and back; each pair of orders is an unbiased draw of all Shapley values, so their mean has a
    standard error that assumes nothing.
    """
    options = {"passes": passes, "tolerance": 0.0, "surrogate": "linear"}
    one, other = (
        case.ours("shapley", seed=seed + extra, **options)[0].scores for extra in (10_001, 10_002)
    )
    scores = (one + other) / 2
    error = float(np.sqrt(np.mean((one - other) ** 2)) / 2 / np.std(scores))
    mean, standard_error = permutation_shapley(case.function(token_budget), passes, seed)
    bias = float(np.mean(((scores - mean) / standard_error) ** 2))
    return Reference(scores, error, bias)


def permutation_shapley(function: Function, passes: int, seed: int) -> tuple[Floats, Floats]:
    """(E,) means and (E,) standard errors over antithetic pairs of permutations.

    Castro et al. 2009, doi:10.1016/j.cor.2008.04.004; a pair costs 2E passes.
    """
    size, draw = function.size, np.random.default_rng(seed)
    pairs = max(2, passes // (2 * size))
    orders = [draw.permutation(size) for _ in range(pairs)]
    forth = [_gains(function, order) for order in orders]
    back = [_gains(function, order[::-1]) for order in orders]
    draws = (np.array(forth) + np.array(back)) / 2
    return draws.mean(axis=0), draws.std(axis=0, ddof=1) / np.sqrt(pairs)


def _gains(function: Function, order: np.ndarray) -> Floats:
    """(E,) what each event adds when events come in this order."""
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    kept = np.arange(len(order) + 1)[:, None] > place
    return np.diff(function(kept))[place]
