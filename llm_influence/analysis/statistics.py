"""Statistics of arrays in which users, not events, are the independent observations.

Means of sums: users are dealt into `GROUPS` groups. Only the sums T_g of scores and N_g of events
of each group are kept, however many events there are, and groups are the units of standard errors:

    m = sum T_g / sum N_g,   V(m) = c sum over groups of (T_g - N_g m)^2 / (sum N_g)^2,
    c = G / (G - 1) with G groups that have events

Permutation tests shuffle users and compare with the largest statistic of all (Westfall and Young
1993), so the chance of any false positive is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_influence.numerics import splitmix64
from llm_influence.types import FloatArray, IntArray
from llm_influence.utils import require

LEVEL = 0.95  # confidence level of every interval
NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))  # half its width, in standard errors
GROUPS = 100
LEAST_GROUPS = 10  # with users in fewer groups no interval is given
MOST_DRAWN = 12  # Poisson numbers of mean 1 are cut here; larger ones have a probability of 6e-11
USERS_A_COMPONENT = 10  # history controls have at most one component for so many users
FOLDS = 5
NEARLY_ZERO = 1e-9


def holm(p_values: Sequence[float]) -> FloatArray:
    """Holm's (1979) p-values, which bound the chance of any false positive; nan stays nan."""
    adjusted = np.array(p_values, dtype=np.float64)
    tested = ~np.isnan(adjusted)
    if tested.any():
        module, purpose = "statsmodels.stats.multitest", "correction for multiple tests"
        multitest = require(module, extra="analysis", purpose=purpose)
        adjusted[tested] = multitest.multipletests(adjusted[tested], method="holm")[1]
    return adjusted


def user_weights(users: IntArray, resamples: int, seed: int) -> FloatArray:
    """(P, 1 + R) bootstrap weights of rows, from (P,) user codes; column 0 is the data, all 1.

    The Poisson bootstrap (Hanley and MacGibbon 2006, doi:10.1016/j.cmpb.2006.04.006) does not need
    the number of users, so sums over a stream can be resampled. Weights depend on user, resample
    and seed alone: all rows of a user have the same weights in any batch.
    """
    seeded = splitmix64(users.astype(np.uint64) + splitmix64(np.full(1, seed, dtype=np.uint64)))
    draws = splitmix64(seeded[:, None] + splitmix64(np.arange(1, resamples + 1, dtype=np.uint64)))
    uniform = (draws >> np.uint64(11)).astype(np.float64) / 2**53
    numbers = np.searchsorted(stats.poisson(1).cdf(np.arange(MOST_DRAWN)), uniform, side="right")
    return np.column_stack([np.ones(len(users)), numbers.astype(np.float64)])


def mean_interval(values: FloatArray) -> tuple[float, float, float]:
    """Mean of (n,) values, one per user, and the ends of its t interval; nan ends for one user."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(critical(len(values)) * stats.sem(values))
    return mean, mean - half, mean + half


def divide(above: FloatArray | float, below: FloatArray, none: float = np.nan) -> FloatArray:
    """The quotient, ``none`` where ``below`` is not above zero."""
    shape = np.broadcast_shapes(np.shape(above), np.shape(below))
    return np.divide(above, below, out=np.full(shape, none), where=np.asarray(below) > 0)


# --- means of sums by group of users ---------------------------------------------------------


def occupied(events: FloatArray) -> IntArray:
    """(...) number of groups with events, from (G, ...) counts."""
    count: IntArray = (events > 0).sum(axis=0)
    return count


def means(totals: FloatArray, events: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means (nan without events) and standard errors from (G, ...) sums by group of users."""
    total, count = totals.sum(axis=0), events.sum(axis=0)
    mean = divide(total, count)
    squares = ((totals - events * np.nan_to_num(mean)) ** 2).sum(axis=0)
    return mean, np.sqrt(correction(occupied(events)) * squares) * divide(1.0, count)


def difference(totals: FloatArray, events: FloatArray) -> tuple[float, float, float, int]:
    """Compare the means of two samples, whose users may be the same, from (2, G) sums.

    Returns both means, the standard error of their difference, and the groups with events.
    """
    middle = totals.sum(axis=1) / events.sum(axis=1)
    added = (totals - events * middle[:, None]) / events.sum(axis=1, keepdims=True)
    groups = int(occupied(events.sum(axis=0)))
    error = np.sqrt(correction(groups) * ((added[1] - added[0]) ** 2).sum())
    return float(middle[0]), float(middle[1]), float(error), groups


def correction(groups: IntArray | int) -> FloatArray:
    """G / (G - 1), the small-sample factor of a variance; nan for fewer than two groups."""
    count = np.asarray(groups)
    return np.where(count > 1, count / np.maximum(count - 1, 1), np.nan)


def critical(groups: IntArray | int) -> FloatArray:
    """Half the width of a 95% t interval over groups, in standard errors."""
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, np.maximum(np.asarray(groups) - 1, 1)))


def half_widths(errors: FloatArray, groups: IntArray) -> FloatArray:
    """(...) half the widths of 95% intervals; nan with fewer than `LEAST_GROUPS` groups."""
    return np.where(groups >= LEAST_GROUPS, errors * critical(groups), np.nan)


def p_value(value: float, error: float, groups: int) -> float:
    """The p-value of a t test against zero; nan where the error is not known."""
    if not error > 0:
        return float("nan") if np.isnan(error) or value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, max(groups - 1, 1)))


# --- tests of groups of users ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class GroupDifferences:
    """Differences between k groups of users in m measures."""

    means: FloatArray  # (k, m) mean of each group
    differences: FloatArray  # (k, m) mean of a group minus the mean of all other users
    errors: FloatArray  # (k, m) standard errors of the differences
    statistics: FloatArray  # (m,) test statistics T
    p_values: FloatArray  # (m,) probability of a T as large in any measure if groups do not matter


def group_differences(
    measures: FloatArray, groups: IntArray, controls: FloatArray | None, *, shuffles: int, seed: int
) -> GroupDifferences:
    """Test whether groups of users differ, also among users with the same history.

    With y one number per user, D the groups and X the controls::

        s = D' (I - P_X) y,   V = sum over users of d_u d_u' e_u^2,   T = s' V^-1 s

    where e are the residuals of y on X, and d those of D: a score statistic that allows groups to
    differ in variance. p-values come from shuffled residuals (Freedman and Lane 1983), with the
    same shuffle for all measures; without controls they are exact.

    Args:
        measures: (n, m) numbers per user; every column varies.
        groups: (n,) 0 to k - 1, each with users.
        controls: (n, p) facts that explain equal treatment, see `history_controls`; None: nothing.
        shuffles: p-values are at least 1 / (1 + shuffles).
        seed: Seed of the shuffles.
    """
    members = (groups[:, None] == np.arange(groups.max() + 1)).astype(np.float64)
    constant = np.ones((len(groups), 1))
    basis = _basis(np.column_stack([constant, constant if controls is None else controls]))
    residuals, apart = (x - basis @ (basis.T @ x) for x in (measures, members))
    differences, errors = _coefficients(apart, residuals)
    tested = _basis(apart[:, :-1])
    observed = _score_statistics(tested, residuals)
    random, beaten = np.random.default_rng(seed), np.zeros(measures.shape[1])
    for _ in range(shuffles):
        largest = _score_statistics(tested, residuals[random.permutation(len(groups))]).max()
        beaten += largest >= observed * (1 - NEARLY_ZERO)
    middle = members.T @ measures / members.sum(axis=0)[:, None]
    p_values = (1 + beaten) / (1 + shuffles)
    return GroupDifferences(middle, differences, errors, observed, p_values)


def history_controls(facts: FloatArray, groups: IntArray) -> FloatArray:
    """(n, p) principal components of facts of histories, and the group probabilities they give.

    With these probabilities among the controls, groups that differ only in their histories have no
    effect, even if a measure depends on the history in a nonlinear way (Robins, Mark and Newey
    1992).

    """
    spread = facts.std(axis=0)
    varies = spread > NEARLY_ZERO
    scaled = (facts - facts.mean(axis=0))[:, varies] / spread[varies]
    left, strength, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = np.flatnonzero(strength > NEARLY_ZERO * strength.max(initial=0.0))
    kept = kept[: len(groups) // USERS_A_COMPONENT]
    if not len(kept):
        return np.zeros((len(groups), 0))
    components = left[:, kept] * np.sqrt(len(groups))
    model = LogisticRegression(max_iter=1000).fit(components, groups)
    probabilities = model.predict_proba(components)
    logs = np.log(probabilities.clip(NEARLY_ZERO))
    return np.column_stack([components, probabilities[:, 1:], logs[:, 1:] - logs[:, :1]])


def _basis(columns: FloatArray) -> FloatArray:
    """(n, r) orthonormal columns that span the same space."""
    left, strength, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, strength > NEARLY_ZERO * strength.max(initial=0.0)]


def _coefficients(apart: FloatArray, residuals: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(k, m) coefficients of each group's own dummy, and their standard errors."""
    values, errors = np.zeros((2, apart.shape[1], residuals.shape[1]))
    for place, column in enumerate(apart.T):
        own = column @ column
        if own > NEARLY_ZERO:
            values[place] = column @ residuals / own
            left = residuals - np.outer(column, values[place])
            errors[place] = np.sqrt((column[:, None] ** 2 * left**2).sum(axis=0)) / own
    return values, errors


def _score_statistics(tested: FloatArray, residuals: FloatArray) -> FloatArray:
    """(m,) T of every measure."""
    scores, identity = tested.T @ residuals, np.eye(tested.shape[1])
    variance = np.einsum("nd,ne,nm->mde", tested, tested, residuals**2, optimize=True)
    variance += NEARLY_ZERO * np.trace(variance, axis1=1, axis2=2)[:, None, None] * identity
    variance += identity * np.finfo(float).tiny
    return np.einsum("dm,dm->m", scores, np.linalg.solve(variance, scores.T[..., None])[..., 0].T)


@dataclass(frozen=True, slots=True, eq=False)
class Associations:
    """How strongly each of L quantities is associated with groups of users."""

    strengths: FloatArray  # (L,) correlation ratios of ranks, 0 to 1
    # (L,) probability of a strength as large in any quantity if groups do not matter
    p_values: FloatArray
    group: IntArray  # (L,) the group with the highest mean rank
    # (L,) probability that a user of that group has more than a user of another group
    aucs: FloatArray


def associations(ranks: FloatArray, groups: IntArray, *, shuffles: int, seed: int) -> Associations:
    """Test which quantities tell groups of users apart.

    With z the ranks of a quantity over users,

        strength^2 = sum over groups of n_g mean_g(z)^2 / sum over users of z^2 = H / (n - 1),

    where H is the Kruskal-Wallis statistic. For a quantity of 0 and 1 this is Cramer's V.
    The (n, L) ``ranks`` have mean 0 and length 1, or are all 0 for a quantity that is not tested.
    """
    sizes = np.bincount(groups)
    members = (groups[:, None] == np.arange(len(sizes))).astype(np.float64)

    def squares(sums: FloatArray) -> FloatArray:
        ratios: FloatArray = (sums**2 / sizes[:, None]).sum(axis=0)
        return ratios

    sums = members.T @ ranks
    observed = squares(sums)
    random, beaten = np.random.default_rng(seed), np.zeros(len(observed))
    for _ in range(shuffles):
        shuffled = members[random.permutation(len(groups))]
        beaten += squares(shuffled.T @ ranks).max(initial=0.0) >= observed * (1 - NEARLY_ZERO)
    p_values = np.where(observed > 0, (1 + beaten) / (1 + shuffles), 1.0)
    group = (sums / sizes[:, None]).argmax(axis=0)
    aucs = np.full(ranks.shape[1], 0.5)
    for place in np.unique(group):
        mine, own = group == place, groups == place
        order = stats.rankdata(ranks[:, mine], axis=0)  # Mann and Whitney's statistic
        count = own.sum()
        above = order[own].sum(axis=0) - count * (count + 1) / 2
        aucs[mine] = above / (count * (len(groups) - count))
    return Associations(np.sqrt(observed), p_values, group, aucs)


def group_auc(facts: FloatArray, groups: IntArray, seed: int) -> float:
    """Cross-validated AUC of the group predicted from facts; for several groups the mean AUC."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    chances = cross_val_predict(model, facts, groups, cv=folds, method="predict_proba")
    scores = chances[:, 1] if chances.shape[1] == 2 else chances
    return float(roc_auc_score(groups, scores, multi_class="ovr"))
