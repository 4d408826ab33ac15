"""Evaluation of all heads of a model on an evaluation set, and its comparison with baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import EvaluationSet, Split, feedback_labels
from llm_influence.errors import ConfigError, out_of_range
from llm_influence.evaluation.baselines import (
    behavior_baselines,
    feedback_baselines,
)
from llm_influence.evaluation.item_baselines import item_systems
from llm_influence.evaluation.metrics import (
    ModelRecommender,
    Recommender,
    behavior_metrics,
    evaluate,
    exposure_metrics,
    feedback_metrics,
    ndcg_of_rows,
    ranking_metrics,
    seen_items,
    target_ranks,
    value_metrics,
)
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, History, IntArray

_HEADS = {
    "item_head": ("ndcg", "hr", "mrr"),
    "feedback_head": ("auc", "gauc", "log_loss", "brier", "rmse", "mae"),
    "behavior_head": ("accuracy", "macro_f1"),
}
_MAIN = {"item_head": "ndcg", "feedback_head": "auc", "behavior_head": "accuracy"}
_LOWER_IS_BETTER = {"log_loss", "brier", "rmse", "mae"}
_OF_VALUES, _OF_PROBABILITIES = {"rmse", "mae"}, {"auc", "gauc", "log_loss", "brier"}


def chosen_metric(config: RunConfig) -> tuple[str, bool]:
    """The metric that chooses the epoch, named as in `head_metrics`, and whether higher is better.

    Raises:
        ConfigError: Its head is not trained, or the feedback head's kind has no such metric.
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
        expected = f"a metric of a trained head ({', '.join(trained)})"
        fix = f"give model.{head}.weight a value above 0, or set it to {_MAIN[trained[0]]}"
        raise out_of_range(ConfigError, "evaluation.choose_by", name, expected=expected, fix=fix)
    lacking = {"regression": _OF_PROBABILITIES, "binary": _OF_VALUES}.get(feedback.kind, set())
    if head == "feedback_head" and name in lacking:
        kind = f"model.feedback_head.kind {feedback.kind!r}"
        expected = f"{', '.join(sorted((_OF_PROBABILITIES | _OF_VALUES) - lacking))} with {kind}"
        raise out_of_range(ConfigError, "evaluation.choose_by", name, expected=expected)
    prefix = {"item_head": "", "feedback_head": "feedback_", "behavior_head": "behavior_"}[head]
    suffix = f"@{config.evaluation.cutoff}" if name in ("ndcg", "hr") else ""
    return f"{prefix}{name}{suffix}", name not in _LOWER_IS_BETTER


def check_chosen(config: RunConfig, validation: EvaluationSet) -> None:
    """Check that the metric that chooses the epoch is defined on the validation set.

    Raises:
        ConfigError: The set has no labels for it, or its labels are all equal.
    """
    name, _ = chosen_metric(config)
    problem = ""
    if name.startswith("behavior_") and len(validation.log.code_names.behaviors) < 2:
        problem = "the log has only one behaviour"
    if name.startswith("feedback_"):
        head = config.model.feedback_head
        labels = feedback_labels(validation.log, head)[validation.events]
        known = ~np.isnan(labels)
        ones, users = labels[known] >= head.positive_from, validation.users[known]
        if not known.any():
            problem = "no validation example has a label"
        elif name.endswith("auc") and len(np.unique(ones)) < 2:
            problem = f"all validation labels are on one side of {head.positive_from:g}"
        elif name.endswith("gauc") and not np.intersect1d(users[ones], users[~ones]).size:
            problem = f"no user has validation labels on both sides of {head.positive_from:g}"
    if problem:
        raise ConfigError(
            f"{problem}, so {name} is not defined",
            where="evaluation.choose_by, validation",
            expected="validation labels of both kinds",
            fix="set evaluation.choose_by to another metric, or enlarge validation (data.split)",
        )


Columns = dict[str, Tensor]
PREFIXES = {"behaviors": "behavior_", "feedback": "feedback_"}
"""Prefix of metric names by head; metrics of items have none."""


class Examples:
    """The examples of an evaluation set: histories and what really came next.

    Args:
        rows: The set, in the model's codes.
        protocol: The rules of the evaluation: whether seen items are candidates.
        feedback: Configuration of the feedback head; default: without one.
        rules: Changes of scores by the model's rules; default: without rules.
    """

    def __init__(
        self,
        rows: EvaluationSet,
        protocol: EvaluationConfig,
        feedback: FeedbackHeadConfig | None = None,
        rules: Callable[[Sequence[History]], Tensor | None] = lambda histories: None,
    ) -> None:
        self.rows, self._protocol, self._rules = rows, protocol, rules
        self._labels = np.full(len(rows), np.nan, np.float32)
        if feedback is not None:
            self._labels = feedback_labels(rows.log, feedback)[rows.events]

    @classmethod
    def of(cls, model: InfluenceModel, rows: EvaluationSet, protocol: EvaluationConfig) -> Examples:
        """The examples of a set for a model, with its feedback head and rules."""
        return cls(rows, protocol, model.config.feedback, model.rule_scores)

    def histories(self, numbers: Sequence[int]) -> list[History]:
        """The histories before the numbered examples."""
        return [self.rows.history(number) for number in numbers]

    def answers(self, numbers: Sequence[int], histories: Sequence[History]) -> Columns:
        """The targets of B examples by name, with what changes their candidates.

        Args:
            numbers: Numbers of the examples.
            histories: Their histories.

        Returns:
            ``labels`` (B,) item codes; ``behavior_labels`` (B,); ``feedback_labels`` (B,), NaN
            without a label; ``users`` (B,); ``seen`` (B, S) items that are no candidates;
            ``changes`` (B, I) of scores, if there are rules.
        """
        places = np.asarray(numbers)
        columns = {
            "labels": self.rows.target_items[places],
            "behavior_labels": self.rows.target_behaviors[places],
            "users": self.rows.users[places],
        }
        answers = {name: torch.from_numpy(c.astype(np.int64)) for name, c in columns.items()}
        answers["feedback_labels"] = torch.from_numpy(self._labels[places])
        if self._protocol.exclude_seen:
            answers["seen"] = seen_items([history.items for history in histories])
        if (changes := self._rules(histories)) is not None:
            answers["changes"] = changes.cpu()
        return answers


def row_scores(
    model: InfluenceModel, query: QueryState, answers: Columns, *, top: int = 0
) -> Columns:
    """Ranks, probabilities and scores of the trained heads for B examples.

    Call it in eval mode without gradients.

    Args:
        model: The model.
        query: (B,) input of the heads after the histories.
        answers: The targets, see `Examples.answers`.
        top: Number of recommendations to return; default: none.

    Returns:
        ``user``; of items ``rank``, ``item`` and ``top`` (B, K), -1 where there are fewer; of
        behaviours ``behavior``, ``behavior_predicted``, ``behavior_log_probability``; of feedback
        ``feedback_label``, ``feedback_score`` (log-odds), ``feedback_value`` (expected label).
        Columns of heads that are not trained are left out.
    """
    items, behaviors = answers["labels"], answers["behavior_labels"]
    columns = {"user": answers["users"]}
    if model.config.item_head.weight:
        scores, seen = model.item_scores(query), answers.get("seen")
        if "changes" in answers:
            scores = scores.under(answers["changes"])
        columns["rank"] = target_ranks(scores, items, seen).to(items.device)
        if top:
            columns["top"] = scores.best(top, seen=seen).shown().to(items.device)
            columns["item"] = items
    if model.config.behavior_head.weight and len(model.encoder.vocabulary.behaviors) > 1:
        logs = model.behavior_logits(query).double().log_softmax(dim=1)
        columns["behavior"], columns["behavior_predicted"] = behaviors, logs.argmax(dim=1)
        columns["behavior_log_probability"] = logs.gather(1, behaviors[:, None])[:, 0]
    if model.feedback_head is not None:
        columns["feedback_label"] = answers["feedback_labels"].double()
        if model.config.feedback_head.kind != "regression":
            columns["feedback_score"] = model.feedback(query, items, behaviors).double()
        if (expected := model.expected_feedback(query, items, behaviors)) is not None:
            columns["feedback_value"] = expected.double()
    return columns


def head_metrics(
    model: InfluenceModel, columns: Mapping[str, np.ndarray], cutoff: int
) -> dict[str, float]:
    """Metrics of all heads from the ``columns`` of N examples (`row_scores`).

    Names are bare for items (``ndcg@10``) and have a prefix for the other heads (``feedback_auc``,
    ``behavior_accuracy``). ``coverage`` and ``popularity`` need the column ``top``.
    """
    groups: dict[str, dict[str, float]] = {"items": {}}
    if "rank" in columns:
        groups["items"] |= ranking_metrics(columns["rank"], cutoff)
    if "top" in columns and (counts := model.encoder.vocabulary.counts) is not None:
        groups["items"] |= exposure_metrics(columns["top"], columns["item"], counts, cutoff)
    if "behavior" in columns:
        names = ("behavior", "behavior_predicted", "behavior_log_probability")
        groups["behaviors"] = behavior_metrics(*(columns[name] for name in names))
    if "feedback_label" in columns:
        groups["feedback"] = _feedback(model, columns)
    return {
        f"{PREFIXES.get(head, '')}{name}": value
        for head, metrics in groups.items()
        for name, value in metrics.items()
    }


def by_head(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics grouped by head (``items``, ``behaviors``, ``feedback``), without prefixes."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        heads = [head for head, prefix in PREFIXES.items() if name.startswith(prefix)]
        head = heads[0] if heads else "items"
        groups.setdefault(head, {})[name.removeprefix(PREFIXES.get(head, ""))] = value
    return groups


def predict_rows(
    model: InfluenceModel, rows: EvaluationSet, config: EvaluationConfig, *, top: int = 0
) -> dict[str, np.ndarray]:
    """`row_scores` of all N examples of a set, in order.

    Args:
        model: The model.
        rows: The set, in the model's codes.
        config: The protocol: seen items and batch size.
        top: Number of recommendations to return; default: none.
    """
    examples = Examples.of(model, rows, config)
    parts: list[Columns] = []
    with inference(model):
        for start in range(0, len(rows), config.batch_size):
            numbers = range(start, min(start + config.batch_size, len(rows)))
            histories = examples.histories(numbers)
            answers = examples.answers(numbers, histories)
            answers = {name: column.to(model.device) for name, column in answers.items()}
            parts.append(row_scores(model, model.read(histories), answers, top=top))
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def _feedback(model: InfluenceModel, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of the examples with a label; empty without any."""
    known = ~np.isnan(columns["feedback_label"])
    labels: IntArray = columns["feedback_label"][known]
    metrics: dict[str, float] = {}
    if known.any() and "feedback_score" in columns:
        ones = labels >= model.config.feedback_head.positive_from
        metrics |= feedback_metrics(ones, columns["feedback_score"][known], columns["user"][known])
    if known.any() and "feedback_value" in columns:
        metrics |= value_metrics(labels, columns["feedback_value"][known])
    return metrics


Record = dict[str, str | float]


def compare(model: InfluenceModel, split: Split, config: EvaluationConfig) -> list[Record]:
    """Test metrics of the model and of its baselines (`item_systems`), one record each.

    NDCG is also given by kind of question (`question_kinds`), for the kinds that occur.
    """
    counts = np.bincount(split.train.items, minlength=len(split.log.catalogue))
    kinds = question_kinds(split.test, counts)
    systems: list[tuple[str, Recommender]] = [(ModelRecommender.name, ModelRecommender(model))]
    records: list[Record] = []
    for name, system in systems + item_systems(model, split, config):
        metrics, ranks = evaluate(system, split.test, config, counts)
        by_row = ndcg_of_rows(ranks, config.cutoff)
        by_kind = {f"ndcg, {kind}": float(by_row[rows].mean()) for kind, rows in kinds.items()}
        records.append({"system": name, "split": "test", **metrics, **by_kind})
    return records


def question_kinds(rows: EvaluationSet, counts: IntArray) -> dict[str, BoolArray]:
    """(N,) masks of the examples by kind; kinds that do not occur are left out.

    ``revisit``: the history has the target item. ``new to the catalogue``: no training event has
    it. ``new to the user``: all others.
    """
    targets = rows.target_items
    revisit = np.array([target in rows.history(n).items for n, target in enumerate(targets)], bool)
    unknown = ~revisit & (counts[targets] == 0)
    kinds = {
        "revisit": revisit,
        "new to the user": ~revisit & ~unknown,
        "new to the catalogue": unknown,
    }
    return {kind: mask for kind, mask in kinds.items() if mask.any()}


def verdict(records: Sequence[Record], cutoff: int) -> str:
    """One sentence on the baselines of items that are ahead of the model; empty without any."""
    metric = f"ndcg@{cutoff}"
    if not records:
        return ""
    own = float(records[0][metric])
    ahead = [record for record in records[1:] if float(record[metric]) > own]
    if not ahead:
        return ""
    best = max(ahead, key=lambda record: float(record[metric]))
    return (
        f"The baseline {best['system']} is ahead of the model: NDCG@{cutoff} "
        f"{float(best[metric]):.4f} against {own:.4f}."
    )


def compare_heads(
    model: InfluenceModel, split: Split, config: EvaluationConfig
) -> dict[str, list[Record]]:
    """Records as of `compare` for each trained head: ``items``, ``behaviors``, ``feedback``.

    Behaviours and feedback are compared with the baselines of `evaluation.baselines`.
    """
    own = by_head(head_metrics(model, predict_rows(model, split.test, config), config.cutoff))
    baselines: dict[str, dict[str, dict[str, float]]] = {}
    if "behaviors" in own:
        baselines["behaviors"] = behavior_baselines(split)
    if "feedback" in own and model.config.feedback is not None:
        baselines["feedback"] = feedback_baselines(split, model.config.feedback)
    records = {"items": compare(model, split, config)} if "items" in own else {}
    for head, systems in baselines.items():
        systems = {ModelRecommender.name: own[head], **systems}
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
