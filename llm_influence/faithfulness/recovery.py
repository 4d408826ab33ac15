"""Do scores find what truly made a prediction? For logs whose truth is known (`data.planted`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from llm_influence.errors import ExplanationError
from llm_influence.types import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """How well the scores of N histories recover their truth; higher is better.

    A figure is nan for a history that cannot have it: without both causes and others there is
    nothing to tell apart, and what is constant has no rank.

    Attributes:
        auroc: (N,) chance that a cause has a larger absolute score than an event that is none.
        auprc: (N,) average precision of the causes by absolute score.
        spearman: (N,) rank correlation of scores and true influence, signs included. Events of
            exactly equal truth share a rank, so that even the truth with a little noise stays
            below 1: with a share z of them, at about sqrt(1 - z^3).
        size_spearman: (N,) the same of absolute values, for scores that know no sign.
        mass: (N,) share of the absolute scores that lies on causes.
    """

    auroc: FloatArray
    auprc: FloatArray
    spearman: FloatArray
    size_spearman: FloatArray
    mass: FloatArray

    def means(self) -> dict[str, float]:
        """Each figure's mean over the histories that have it; nan where none has."""
        return {field.name: _mean(getattr(self, field.name)) for field in fields(self)}


def recovery(
    scores: Sequence[FloatArray], influence: Sequence[FloatArray], is_cause: Sequence[BoolArray]
) -> Recovery:
    """Hold scores against the truth, history by history.

    Args:
        scores: N arrays (E,), as a method gave them.
        influence: N arrays (E,), the true influence.
        is_cause: N arrays (E,), which events are true causes.

    Raises:
        ExplanationError: The three do not fit together.
    """
    _check(scores, influence, is_cause)
    rows = [_recovery(*row) for row in zip(scores, influence, is_cause, strict=True)]
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(fields(Recovery))).T
    return Recovery(*columns)


def _recovery(score: FloatArray, truth: FloatArray, cause: BoolArray) -> tuple[float, ...]:
    size = np.abs(score)
    both = bool(cause.any() and not cause.all())
    return (
        float(roc_auc_score(cause, size)) if both else np.nan,
        float(average_precision_score(cause, size)) if both else np.nan,
        _rank_correlation(score, truth),
        _rank_correlation(size, np.abs(truth)),
        float(size[cause].sum() / size.sum()) if size.any() else np.nan,
    )


def _rank_correlation(ours: FloatArray, theirs: FloatArray) -> float:
    """Scores that are all the same say nothing of the order: 0, where there is one."""
    if len(ours) < 2 or np.ptp(theirs) == 0:
        return np.nan
    return 0.0 if np.ptp(ours) == 0 else float(spearmanr(ours, theirs).statistic)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _check(
    scores: Sequence[FloatArray], influence: Sequence[FloatArray], is_cause: Sequence[BoolArray]
) -> None:
    lengths = [[len(row) for row in part] for part in (scores, influence, is_cause)]
    if lengths[0] == lengths[1] == lengths[2]:
        return
    raise ExplanationError(
        f"scores of {len(scores)} histories against the truth of {len(influence)}"
        if len(scores) != len(influence) or len(scores) != len(is_cause)
        else "a history has another number of scores than of true influences",
        where="recovery",
        expected="one score for every event of every history",
        fix="explain the very histories of the truth (Truth.history), none of them cut",
    )
