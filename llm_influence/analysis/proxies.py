"""Which behaviours tell who belongs to which group, and how much influence they carry.

Strength is the correlation ratio of ranks: with z the ranks over users of how much of a user's
history an event of this kind is, and of items whether it is there at all,

    strength^2 = sum over groups of n_g mean_g(z)^2 / sum over users of z^2 = H / (n - 1),

H being Kruskal and Wallis's statistic. For what is only there or not that is Cramer's V; for two
groups it orders proxies as the AUC does. Significance comes from shuffled groups, against the
largest strength of all (Westfall and Young 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_influence.analysis.audit_users import LEAST_SHOWN, Kind
from llm_influence.types import FloatArray, IntArray

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
