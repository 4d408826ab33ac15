"""What every head says of the rows of an evaluation set, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llm_influence.config import EvaluationConfig, FeedbackHeadConfig
from llm_influence.data.feedback import feedback_labels
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.behaviors import behavior_metrics
from llm_influence.evaluation.exposure import exposure_metrics
from llm_influence.evaluation.feedback import feedback_metrics, value_metrics
from llm_influence.evaluation.ranking import ranking_metrics, seen_items, target_ranks
from llm_influence.modeling.model import InfluenceModel, inference
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.types import History, IntArray

Columns = dict[str, Tensor]
PREFIXES = {"behaviors": "behavior_", "feedback": "feedback_"}
"""What names of metrics begin with, by head; those of items stand bare."""


class Questions:
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
        answers: See `Questions.answers`.
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
    if model.config.behavior_head.weight and len(model.encoder.lexicon.behaviors) > 1:
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
    if "top" in found and (counts := model.encoder.lexicon.counts) is not None:
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
    questions = Questions(
        rows, exclude_seen=config.exclude_seen, feedback=feedback, rules=model.rule_scores
    )
    parts: list[Columns] = []
    with inference(model):
        for start in range(0, len(rows), config.batch_size):
            numbers = range(start, min(start + config.batch_size, len(rows)))
            histories = questions.histories(numbers)
            answers = questions.answers(numbers, histories)
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
