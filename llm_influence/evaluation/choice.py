"""Which metric of validation chooses the epoch."""

from __future__ import annotations

import numpy as np

from llm_influence.config import RunConfig
from llm_influence.data.feedback import feedback_labels
from llm_influence.data.splits import EvaluationSet
from llm_influence.errors import ConfigError

_HEADS = {
    "item_head": ("ndcg", "hr", "mrr"),
    "feedback_head": ("auc", "gauc", "log_loss", "brier", "rmse", "mae"),
    "behavior_head": ("accuracy", "macro_f1"),
}
_MAIN = {"item_head": "ndcg", "feedback_head": "auc", "behavior_head": "accuracy"}
_LOWER_IS_BETTER = {"log_loss", "brier", "rmse", "mae"}
_OF_VALUES, _OF_CHANCES = {"rmse", "mae"}, {"auc", "gauc", "log_loss", "brier"}


def chosen_metric(config: RunConfig) -> tuple[str, bool]:
    """The metric's name as `evaluation.heads.head_metrics` gives it, and whether more is better.

    Raises:
        ConfigError: It is of a head that is not trained, or one that the head does not have.
    """
    name: str = config.evaluation.choose_by
    feedback = config.model.feedback_head
    trained = [head for head in _HEADS if getattr(config.model, head).weight]
    if name == "auto":
        name = _MAIN[trained[0]]
        if trained[0] == "feedback_head" and feedback.kind == "regression":
            name = "rmse"
    head = next(head for head, names in _HEADS.items() if name in names)
    if head not in trained:
        raise ConfigError(
            f"evaluation.choose_by is {name!r}, and model.{head}.weight is 0",
            where="evaluation.choose_by",
            expected=f"a metric of a head that is trained: {', '.join(trained)}",
            fix=f"train the head, or choose by {_MAIN[trained[0]]}",
        )
    lacking = {"regression": _OF_CHANCES, "binary": _OF_VALUES}.get(feedback.kind, set())
    if head == "feedback_head" and name in lacking:
        raise ConfigError(
            f"evaluation.choose_by is {name!r}",
            where=f"model.feedback_head, kind {feedback.kind!r}",
            expected=", ".join(sorted((_OF_CHANCES | _OF_VALUES) - lacking)),
            fix="choose by one of these, or change the kind",
        )
    prefix = {"item_head": "", "feedback_head": "feedback_", "behavior_head": "behavior_"}[head]
    suffix = f"@{config.evaluation.cutoff}" if name in ("ndcg", "hr") else ""
    return f"{prefix}{name}{suffix}", name not in _LOWER_IS_BETTER


def check_chosen(config: RunConfig, validation: EvaluationSet) -> None:
    """Refuse a validation that says nothing about the metric that should choose the epoch.

    Raises:
        ConfigError: No row can be asked, or all answers are of one sort.
    """
    name, _ = chosen_metric(config)
    found = ""
    if name.startswith("behavior_") and len(validation.log.vocabulary.behaviors) < 2:
        found = "the log has one behaviour alone"
    if name.startswith("feedback_"):
        head = config.model.feedback_head
        labels = feedback_labels(validation.log, head)[validation.events]
        asked = ~np.isnan(labels)
        ones, users = labels[asked] >= head.positive_from, validation.users[asked]
        if not asked.any():
            found = "no validation row has a label"
        elif name.endswith("auc") and len(np.unique(ones)) < 2:
            found = f"all labels of validation are on one side of {head.positive_from:g}"
        elif name.endswith("gauc") and not np.intersect1d(users[ones], users[~ones]).size:
            found = f"no user has validation labels on both sides of {head.positive_from:g}"
    if found:
        raise ConfigError(
            f"{found}, so {name} cannot be measured",
            where="evaluation.choose_by, validation",
            expected="answers of more than one sort",
            fix="choose by another metric, or ask more questions (data.split)",
        )
