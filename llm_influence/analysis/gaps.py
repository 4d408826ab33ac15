"""Do groups of users differ in what they get, and still do among users who did the same?

With y one number a user, D the groups and X what is known of the user's history,

    s = D' (I - P_X) y,   V = sum over users of d_u d_u' e_u^2,   T = s' V^-1 s

where e are the residuals of y on X and d those of D: a score statistic that holds when groups
differ in spread. X is an intercept alone, or also facts of the history and the chances of each
group that they give. With these chances in X, groups that differ only by what they did have no part
in s even if y depends on the history in a way that is not linear (Robins, Mark and Newey 1992).

Significance comes from shuffled residuals (Freedman and Lane 1983), the same shuffle for all
measures, against the largest T of all of them (Westfall and Young 1993). So the chance of any false
alarm among the measures is bounded, and without X it is exactly so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression

from llm_influence.analysis.regression import LEVEL
from llm_influence.types import FloatArray, IntArray

USERS_A_FACT = 10
"""Facts of histories are joined into so few that each has as many users."""
FEW = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """What k groups of n users got, in m measures.

    Attributes:
        means: (k, m) mean of each group.
        differences: (k, m) how far that is from the mean of all other users.
        errors: (k, m) standard errors of the differences.
        statistics: (m,) T.
        p_values: (m,) chance of a T as large among all measures, where groups do not matter.
    """

    means: FloatArray
    differences: FloatArray
    errors: FloatArray
    statistics: FloatArray
    p_values: FloatArray

    @property
    def critical(self) -> float:
        """Half the width of a 95% interval, in standard errors."""
        return float(stats.norm.ppf((1 + LEVEL) / 2))


def gaps(
    measures: FloatArray, groups: IntArray, known: FloatArray | None, *, shuffles: int, seed: int
) -> Gaps:
    """Differences between groups, and whether chance alone makes them.

    Args:
        measures: (n, m) what each user gets; every column varies.
        groups: (n,) 0 to k - 1, each with users.
        known: (n, p) what users with the same values may get alike: `same_history`; None: nothing.
        shuffles: How many; p-values are no smaller than 1 / (1 + shuffles).
        seed: Of the shuffles.
    """
    members = (groups[:, None] == np.arange(groups.max() + 1)).astype(np.float64)
    base = np.ones((len(groups), 1)) if known is None else known
    basis = _basis(np.column_stack([np.ones(len(groups)), base]))
    residuals = _without(measures, basis)
    apart = _without(members, basis)
    means = members.T @ measures / members.sum(axis=0)[:, None]
    differences, errors = _each_against_others(apart, residuals)
    tested = _basis(apart[:, :-1])
    observed = _statistics(tested, residuals)
    random, beaten = np.random.default_rng(seed), np.zeros(measures.shape[1])
    for _ in range(shuffles):
        largest = _statistics(tested, residuals[random.permutation(len(groups))]).max()
        beaten += largest >= observed * (1 - FEW)
    return Gaps(means, differences, errors, observed, (1 + beaten) / (1 + shuffles))


def same_history(facts: FloatArray, groups: IntArray) -> FloatArray:
    """(n, p) facts of histories without repetition, and the chances of each group that they give.

    Args:
        facts: (n, q) of each user's history.
        groups: (n,) 0 to k - 1.
    """
    spread = facts.std(axis=0)
    scaled = (facts - facts.mean(axis=0))[:, spread > FEW] / spread[spread > FEW]
    left, strength, _ = np.linalg.svd(scaled, full_matrices=False)
    room = len(groups) // USERS_A_FACT
    kept = (strength > FEW * strength.max(initial=0.0)).nonzero()[0][:room]
    if not len(kept):
        return np.zeros((len(groups), 0))
    main = left[:, kept] * np.sqrt(len(groups))
    model = LogisticRegression(max_iter=1000).fit(main, groups)
    chances = np.log(model.predict_proba(main).clip(FEW))
    odds = chances[:, 1:] - chances[:, :1]
    return np.column_stack([main, model.predict_proba(main)[:, 1:], odds])


def _basis(columns: FloatArray) -> FloatArray:
    """(n, r) orthonormal columns that span the same space."""
    left, strength, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, strength > FEW * strength.max(initial=0.0)]


def _without(columns: FloatArray, basis: FloatArray) -> FloatArray:
    return columns - basis @ (basis.T @ columns)


def _each_against_others(apart: FloatArray, residuals: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(k, m) coefficients of each group's own dummy, and their standard errors."""
    own = (apart**2).sum(axis=0)[:, None]
    found = np.divide(
        apart.T @ residuals,
        own,
        out=np.zeros((apart.shape[1], residuals.shape[1])),
        where=own > FEW,
    )
    errors = np.zeros_like(found)
    for place, column in enumerate(apart.T):
        if own[place] > FEW:
            left = residuals - np.outer(column, found[place])
            errors[place] = np.sqrt((column[:, None] ** 2 * left**2).sum(axis=0)) / own[place]
    return found, errors


def _statistics(tested: FloatArray, residuals: FloatArray) -> FloatArray:
    """(m,) T of every measure."""
    moved = tested.T @ residuals
    spread = np.einsum("nd,ne,nm->mde", tested, tested, residuals**2, optimize=True)
    spread += FEW * np.trace(spread, axis1=1, axis2=2)[:, None, None] * np.eye(tested.shape[1])
    spread += np.eye(tested.shape[1]) * np.finfo(float).tiny
    return np.einsum("dm,dm->m", moved, np.linalg.solve(spread, moved.T[..., None])[..., 0].T)
