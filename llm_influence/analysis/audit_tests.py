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

Which behaviours tell who belongs to which group, and how much influence they carry.

Strength is the correlation ratio of ranks: with z the ranks over users of how much of a user's
history an event of this kind is, and of items whether it is there at all,

    strength^2 = sum over groups of n_g mean_g(z)^2 / sum over users of z^2 = H / (n - 1),

H being Kruskal and Wallis's statistic. For what is only there or not that is Cramer's V; for two
groups it orders proxies as the AUC does. Significance comes from shuffled groups, against the
largest strength of all (Westfall and Young 1993).

What counterfactual flips say of a feature: does the recommendation hang on it alone?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_influence.analysis.audit_users import LEAST_SHOWN, Kind
from llm_influence.analysis.levels import MOST_LEVELS
from llm_influence.analysis.statistics import LEVEL, Mean, mean_of
from llm_influence.errors import DataError
from llm_influence.influence.table_files import FLIPS, read_fairness_test
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


FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Proxies:
    """Strengths of the L levels of all kinds, one kind after the other.

    Attributes:
        kinds: (L,) name of each level's kind.
        levels: (L,) names.
        strengths: (L,) from 0 to 1; 0 where a level is too rare to tell.
        p_values: (L,) chance of a strength as large among all levels, were groups nothing to them.
        group: (L,) place of the group that has most of it.
        aucs: (L,) chance that a user of that group has more of it than another user.
    """

    kinds: tuple[str, ...]
    levels: tuple[str, ...]
    strengths: FloatArray
    p_values: FloatArray
    group: IntArray
    aucs: FloatArray

    def weights(self, alpha: float) -> dict[str, FloatArray]:
        """Strengths by kind, 0 where they may be chance."""
        certain = np.where(self.p_values <= alpha, self.strengths, 0.0)
        kinds = np.array(self.kinds)
        return {name: certain[kinds == name] for name in dict.fromkeys(self.kinds)}


def find_proxies(kinds: list[Kind], groups: IntArray, *, shuffles: int, seed: int) -> Proxies:
    """How well each level of each kind tells the groups apart.

    Args:
        kinds: How events are sorted, of the n users with a group.
        groups: (n,) 0 to k - 1.
        shuffles: How many.
        seed: Of the shuffles.
    """
    ranks = np.column_stack([_ranks(kind) for kind in kinds])
    sizes = np.bincount(groups)
    members = (groups[:, None] == np.arange(len(sizes))).astype(np.float64)
    sums = members.T @ ranks
    squares = _squares(sums, sizes)
    random, beaten = np.random.default_rng(seed), np.zeros(len(squares))
    for _ in range(shuffles):
        shuffled = members[random.permutation(len(groups))]
        beaten += _squares(shuffled.T @ ranks, sizes).max(initial=0.0) >= squares * (1 - 1e-9)
    p_values = np.where(squares > 0, (1 + beaten) / (1 + shuffles), 1.0)
    group = (sums / sizes[:, None]).argmax(axis=0)
    return Proxies(
        kinds=tuple(kind.name for kind in kinds for _ in kind.levels),
        levels=tuple(level for kind in kinds for level in kind.levels),
        strengths=np.sqrt(squares),
        p_values=p_values,
        group=group,
        aucs=_aucs(ranks, group, groups),
    )


def told_by_history(facts: FloatArray, groups: IntArray, seed: int) -> float:
    """AUC of the group as unseen users' histories tell it; of several groups the mean AUC."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    chances = cross_val_predict(model, facts, groups, cv=folds, method="predict_proba")
    scores = chances[:, 1] if chances.shape[1] == 2 else chances
    return float(roc_auc_score(groups, scores, multi_class="ovr"))


def _ranks(kind: Kind) -> FloatArray:
    """(n, L) ranks with mean 0 and length 1; all 0 where a level is too rare to tell."""
    if kind.name == "item_id":
        amounts = (kind.counts > 0).astype(np.float64)
    else:
        whole = kind.counts.sum(axis=1, keepdims=True)
        amounts = np.divide(kind.counts, whole, out=np.zeros_like(kind.counts), where=whole > 0)
    ranks = stats.rankdata(amounts, axis=0) - (len(amounts) + 1) / 2
    lengths = np.linalg.norm(ranks, axis=0)
    rare = (kind.counts > 0).sum(axis=0) < LEAST_SHOWN
    lengths[rare] = 0.0
    return np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)


def _squares(sums: FloatArray, sizes: IntArray) -> FloatArray:
    found: FloatArray = (sums**2 / sizes[:, None]).sum(axis=0)
    return found


def _aucs(ranks: FloatArray, group: IntArray, groups: IntArray) -> FloatArray:
    """(L,) Mann and Whitney's statistic of each level's own group against the others."""
    found = np.full(ranks.shape[1], 0.5)
    for place in np.unique(group):
        mine = group == place
        own = groups == place
        order = stats.rankdata(ranks[:, mine], axis=0)
        inside, outside = own.sum(), (~own).sum()
        found[mine] = (order[own].sum(axis=0) - inside * (inside + 1) / 2) / (inside * outside)
    return found


ANY = "any"
"""The own value of all users together, of a feature with many."""


@dataclass(frozen=True, slots=True)
class Flips:
    """Of the users whose feature is known.

    Attributes:
        users: How many.
        changed: Share of them whose first recommendation some other value changes.
        p_value: Chance of so many changes if no more users than tolerated could have one.
        pairs: One record a pair of values, as a table has it.
    """

    users: int
    changed: float
    p_value: float
    pairs: list[dict[str, Any]]


def flips_beside(sources: Sequence[Path]) -> pa.Table | None:
    """The flips beside influence tables, or None.

    Raises:
        DataError: Several tables have their own.
        SchemaError: See `read_fairness_test`.
    """
    folders = dict.fromkeys(place if place.is_dir() else place.parent for place in sources)
    found = [folder / FLIPS for folder in folders if (folder / FLIPS).exists()]
    if len(found) > 1:
        raise DataError(
            f"flips beside several tables: {', '.join(map(str, found))}",
            where="influence tables",
            expected="one table of flips, or none",
            fix="audit the tables one by one",
        )
    return read_fairness_test(found[0]) if found else None


def flips_of(table: pa.Table, feature: str, tolerated: float) -> Flips | None:
    """What the flips of one feature say; None where there are none.

    Args:
        table: As `read_fairness_test` gives it.
        feature: Name of the feature, without ``user:``.
        tolerated: Share of users who may have a change.
    """
    rows = table.filter(pc.equal(table["feature"], feature))
    if not len(rows):
        return None
    users, user = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    changed = np.zeros(len(users), dtype=bool)
    np.logical_or.at(changed, user, rows["changed"].to_numpy(zero_copy_only=False))
    test = stats.binomtest(int(changed.sum()), len(users), tolerated, alternative="greater")
    return Flips(len(users), float(changed.mean()), float(test.pvalue), _pairs(rows, feature))


def _pairs(rows: pa.Table, feature: str) -> list[dict[str, Any]]:
    values, others = (np.array(rows[name].to_pylist()) for name in ("value", "other"))
    if len(np.unique(values)) > MOST_LEVELS:
        values = np.full(len(values), ANY)
    moved = rows["log_odds_other"].to_numpy() - rows["log_odds"].to_numpy()
    columns = {
        "changed": rows["changed"].to_numpy(zero_copy_only=False).astype(np.float64),
        "kept": rows["kept"].to_numpy(),
        "log_odds_moved": moved,
    }
    found = []
    for value, other in sorted(set(zip(values.tolist(), others.tolist(), strict=True))):
        these = (values == value) & (others == other)
        record: dict[str, Any] = {"feature": f"user:{feature}", "value": value, "other": other}
        record["users"] = int(these.sum())
        for name, column in columns.items():
            mean: Mean = mean_of(column[these])
            record |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
        found.append(record)
    return found
