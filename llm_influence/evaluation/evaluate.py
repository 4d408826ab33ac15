"""Which metric of validation chooses the epoch.

What every head says of the rows of an evaluation set, and how good that is.

A model beside the recommenders it must beat, on the same rows and rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import EvaluationSet, Split, feedback_labels
from llm_influence.errors import ConfigError
from llm_influence.evaluation.baselines import (
    Popularity,
    behavior_references,
    best_item_knn,
    feedback_references,
)
from llm_influence.evaluation.metrics import (
    ModelRecommender,
    Recommender,
    behavior_metrics,
    evaluate,
    exposure_metrics,
    feedback_metrics,
    ranking_metrics,
    seen_items,
    target_ranks,
    value_metrics,
)
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.types import History, IntArray

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
    if name.startswith("behavior_") and len(validation.log.code_names.behaviors) < 2:
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
            fix="choose by another metric, or ask more examples (data.split)",
        )


Columns = dict[str, Tensor]
PREFIXES = {"behaviors": "behavior_", "feedback": "feedback_"}
"""What names of metrics begin with, by head; those of items stand bare."""


class Examples:
    """The rows of an evaluation set, with what really came.

    Args:
        rows: The set, in the model's codes.
        exclude_seen: Whether items of a history are no candidates.
        feedback: What is asked of a feedback head; None without one.
        rules: What the model's rules add to scores (`InfluenceModel.rule_scores`).
    """

    def __init__(
        self,
        rows: EvaluationSet,
        *,
        exclude_seen: bool,
        feedback: FeedbackHeadConfig | None,
        rules: Callable[[Sequence[History]], Tensor | None] = lambda histories: None,
    ) -> None:
        self.rows, self._exclude_seen, self._rules = rows, exclude_seen, rules
        self._labels = np.full(len(rows), np.nan, np.float32)
        if feedback is not None:
            self._labels = feedback_labels(rows.log, feedback)[rows.events]

    def histories(self, numbers: Sequence[int]) -> list[History]:
        """What came before the rows numbered ``numbers``."""
        return [self.rows.history(number) for number in numbers]

    def answers(self, numbers: Sequence[int], histories: Sequence[History]) -> Columns:
        """What came: ``labels`` (B,) items, ``behavior_labels``, ``feedback_labels``, NaN where
        none is asked, ``users``; ``seen`` (B, S), items that are no candidates; and ``changes``
        (B, I) of scores, where there are rules.
        """  # noqa: D205
        places = np.asarray(numbers)
        columns = {
            "labels": self.rows.target_items[places],
            "behavior_labels": self.rows.target_behaviors[places],
            "users": self.rows.users[places],
        }
        found = {name: torch.from_numpy(c.astype(np.int64)) for name, c in columns.items()}
        found["feedback_labels"] = torch.from_numpy(self._labels[places])
        if self._exclude_seen:
            found["seen"] = seen_items([history.items for history in histories])
        if (changes := self._rules(histories)) is not None:
            found["changes"] = changes.cpu()
        return found


def row_scores(
    model: InfluenceModel, batch: EncodedBatch, answers: Columns, *, top: int = 0
) -> Columns:
    """What the trained heads say of B rows, in eval mode without gradients.

    Args:
        model: The model.
        batch: The rows' histories.
        answers: See `Examples.answers`.
        top: Also give so many recommendations.

    Returns:
        ``user``; of items ``rank``, ``item`` and ``top`` (B, K), -1 where there are fewer; of
        behaviours ``behavior``, ``behavior_predicted``, ``behavior_log_probability``; of feedback
        ``feedback_label``, ``feedback_score`` (log-odds), ``feedback_value`` (expected label).
        What does not apply is left out.
    """
    states, items, behaviors = model.query(batch), answers["labels"], answers["behavior_labels"]
    found = {"user": answers["users"]}
    if model.config.item_head.weight:
        scores, seen = model.item_scores(states), answers.get("seen")
        if "changes" in answers:
            scores = scores.under(answers["changes"])
        found["rank"] = target_ranks(scores, items, seen).to(items.device)
        if top:
            found["top"] = scores.best(top, seen=seen).shown().to(items.device)
            found["item"] = items
    if model.config.behavior_head.weight and len(model.encoder.vocabulary.behaviors) > 1:
        logs = model.behavior_head(states).double().log_softmax(dim=1)
        found["behavior"], found["behavior_predicted"] = behaviors, logs.argmax(dim=1)
        found["behavior_log_probability"] = logs.gather(1, behaviors[:, None])[:, 0]
    if (head := model.feedback_head) is not None:
        raw = model.feedback_scores(states, items, behaviors)
        found["feedback_label"] = answers["feedback_labels"].double()
        if model.config.feedback_head.kind != "regression":
            found["feedback_score"] = head.link.explained(raw).double()
        if (expected := head.link.expected(raw)) is not None:
            found["feedback_value"] = expected.double()
    return found


def head_metrics(
    model: InfluenceModel, found: Mapping[str, np.ndarray], cutoff: int
) -> dict[str, float]:
    """Metrics of all heads in ``found`` (`row_scores` of N rows).

    Names are bare for items (``ndcg@10``) and begin with `PREFIXES` for the other heads
    (``feedback_auc``, ``behavior_accuracy``). ``coverage``, ``popularity`` need ``top``.
    """
    metrics: dict[str, float] = {}
    if "rank" in found:
        metrics |= ranking_metrics(found["rank"], cutoff)
    if "top" in found and (counts := model.encoder.vocabulary.counts) is not None:
        metrics |= exposure_metrics(found["top"], found["item"], counts, cutoff)
    if "behavior" in found:
        metrics |= _named(
            PREFIXES["behaviors"],
            behavior_metrics(
                found["behavior"], found["behavior_predicted"], found["behavior_log_probability"]
            ),
        )
    if "feedback_label" in found:
        metrics |= _named(PREFIXES["feedback"], _feedback(model, found))
    return metrics


def by_head(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics grouped by head (``items``, ``behaviors``, ``feedback``), prefixes taken off."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        heads = [head for head, prefix in PREFIXES.items() if name.startswith(prefix)]
        head = heads[0] if heads else "items"
        groups.setdefault(head, {})[name.removeprefix(PREFIXES.get(head, ""))] = value
    return groups


def predict_rows(
    model: InfluenceModel, rows: EvaluationSet, config: EvaluationConfig, *, top: int = 0
) -> dict[str, np.ndarray]:
    """`row_scores` of all N rows of a set, in order."""
    feedback = model.config.feedback
    examples = Examples(
        rows, exclude_seen=config.exclude_seen, feedback=feedback, rules=model.rule_scores
    )
    parts: list[Columns] = []
    with inference(model):
        for start in range(0, len(rows), config.batch_size):
            numbers = range(start, min(start + config.batch_size, len(rows)))
            histories = examples.histories(numbers)
            answers = examples.answers(numbers, histories)
            answers = {name: column.to(model.device) for name, column in answers.items()}
            batch = collate(model.encoder.encode(histories)).to(model.device)
            parts.append(row_scores(model, batch, answers, top=top))
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def _feedback(model: InfluenceModel, found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of the rows that are asked for feedback; none of them: no metric."""
    asked = ~np.isnan(found["feedback_label"])
    labels: IntArray = found["feedback_label"][asked]
    metrics: dict[str, float] = {}
    if not asked.any():
        return metrics
    if "feedback_score" in found:
        ones = labels >= model.config.feedback_head.positive_from
        metrics |= feedback_metrics(ones, found["feedback_score"][asked], found["user"][asked])
    if "feedback_value" in found:
        metrics |= value_metrics(labels, found["feedback_value"][asked])
    return metrics


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in metrics.items()}


Record = dict[str, str | float]


def compare(model: InfluenceModel, split: Split, config: EvaluationConfig) -> list[Record]:
    """One record a system with its metrics on the test split: the model, item-kNN, popularity.

    Popularity and item-kNN are fitted on the training events; item-kNN's number of neighbours is
    chosen on validation.
    """
    knn = best_item_knn(split.train, split.validation, config)
    counts = np.bincount(split.train.items, minlength=len(split.log.catalogue))
    systems: list[tuple[str, Recommender]] = [
        (ModelRecommender.name, ModelRecommender(model)),
        (f"{knn.name} ({knn.neighbours})", knn),
        (Popularity.name, Popularity(split.train)),
    ]
    return [
        {"system": name, "split": "test", **evaluate(system, split.test, config, counts)[0]}
        for name, system in systems
    ]


def compare_heads(
    model: InfluenceModel, split: Split, config: EvaluationConfig
) -> dict[str, list[Record]]:
    """Records like those of `compare` for each trained head: items, behaviors, feedback.

    The model stands beside what anybody can say without one (`evaluation.references`).
    """
    found = by_head(head_metrics(model, predict_rows(model, split.test, config), config.cutoff))
    others: dict[str, dict[str, dict[str, float]]] = {}
    if "behaviors" in found:
        others["behaviors"] = behavior_references(split)
    if "feedback" in found and model.config.feedback is not None:
        others["feedback"] = feedback_references(split, model.config.feedback)
    records = {"items": compare(model, split, config)} if "items" in found else {}
    for head, references in others.items():
        systems = {ModelRecommender.name: found[head], **references}
        names = set.intersection(*(set(metrics) for metrics in systems.values()))
        records[head] = [
            {"system": system, "split": "test"}
            | {name: value for name, value in metrics.items() if name in names}
            for system, metrics in systems.items()
        ]
    return records


def as_text(records: list[Record]) -> str:
    """The records as an aligned table for a terminal."""
    names = list(records[0])
    cells = [[_cell(record[name]) for name in names] for record in records]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: str | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
