"""Recovery of a known truth: attribution scores against the true influence of generated logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from llm_influence.errors import ExplanationError
from llm_influence.numerics import spearman
from llm_influence.types import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """How well the scores of N histories recover their truth; higher is better.

    A figure is nan for a history where it is not defined: without both causes and other events,
    or with a constant truth.

    Attributes:
        auroc: (N,) probability that a cause has a larger absolute score than another event.
        auprc: (N,) average precision of the causes by absolute score.
        spearman: (N,) rank correlation of scores and true influence, signs included. Events of
            equal truth share a rank, so that even the truth with a little noise stays below 1:
            with a share z of such events at about sqrt(1 - z^3).
        size_spearman: (N,) the same for absolute values, for scores without signs.
        mass: (N,) share of the absolute scores that lies on causes.
    """

    auroc: FloatArray
    auprc: FloatArray
    spearman: FloatArray
    size_spearman: FloatArray
    mass: FloatArray

    def means(self) -> dict[str, float]:
        """Mean of each figure over the histories that have it; nan where none has."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: column[~np.isnan(column)] for name, column in columns.items()}
        return {name: float(row.mean()) if len(row) else np.nan for name, row in known.items()}


def recovery(
    scores: Sequence[FloatArray], influence: Sequence[FloatArray], is_cause: Sequence[BoolArray]
) -> Recovery:
    """Compare scores with the truth, history by history.

    Args:
        scores: N arrays (E,) of a method's scores.
        influence: N arrays (E,) of true influences.
        is_cause: N arrays (E,), True for events that are true causes.

    Raises:
        ExplanationError: The numbers of histories or events differ.
    """
    lengths = [[len(row) for row in part] for part in (scores, influence, is_cause)]
    if not lengths[0] == lengths[1] == lengths[2]:
        raise ExplanationError(
            f"scores of {len(scores)} histories against the truth of {len(influence)}"
            if len({len(part) for part in lengths}) > 1
            else "a history has another number of scores than of true influences",
            where="recovery",
            expected="one score for every event of every history",
            fix="explain the histories of the truth (Truth.history) whole",
        )
    rows = [_recovery(*row) for row in zip(scores, influence, is_cause, strict=True)]
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(fields(Recovery))).T
    return Recovery(*columns)


def _recovery(score: FloatArray, truth: FloatArray, cause: BoolArray) -> tuple[float, ...]:
    size = np.abs(score)
    both = bool(cause.any() and not cause.all())
    return (
        float(roc_auc_score(cause, size)) if both else np.nan,
        float(average_precision_score(cause, size)) if both else np.nan,
        spearman(truth, score, if_scores_constant=0.0),
        spearman(np.abs(truth), size, if_scores_constant=0.0),
        float(size[cause].sum() / size.sum()) if size.any() else np.nan,
    )
