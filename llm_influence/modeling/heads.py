"""Heads: logits of the next item and behaviour, feedback on a candidate.

The feedback head gives one score to a state and a candidate. A link turns the score into a
statement about the label, as in a generalised linear model.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.config.model import FeedbackHeadConfig, ItemHeadConfig, ModelConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import feedback_labels
from llm_influence.errors import ConfigError
from llm_influence.modeling.aggregates import AggregateFeatures
from llm_influence.modeling.backbone import Backbone
from llm_influence.modeling.candidates import CandidateFeatures
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.memory import Memory
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.time_words import GAP_EDGES


class ItemHead(nn.Module):
    """Logits of the next item: the projected state against every item vector.

    ``cosine`` divides the cosine by a learned temperature, ``dot`` is the plain product. The
    projection starts as the identity, so an untrained head scores items by meaning.

    Args:
        width: Size H of states and item vectors.
        config: Options of the head.
        memory: Additive part over the events of the history; default: none.
    """

    def __init__(self, width: int, config: ItemHeadConfig, memory: Memory | None = None) -> None:
        super().__init__()
        self.score, self.memory = config.score, memory
        self.project = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, query: QueryState, items: Tensor) -> Tensor:
        """(..., I) logits from (...) states and (I, H) item vectors.

        The memory is added where the states have records of events; (N,) states and the vectors
        of the whole catalogue are needed then.
        """
        logits = self.language_logits(query, items)
        if self.memory is None or query.records is None:
            return logits
        return self.memory(logits, query.records, query.presence)

    def language_logits(self, query: QueryState, items: Tensor) -> Tensor:
        """(..., I) logits of the language model alone."""
        projected = self.project(query.hidden)
        if self.score == "dot":
            logits: Tensor = projected @ items.T
        else:
            projected, items = F.normalize(projected, dim=-1), F.normalize(items, dim=-1)
            logits = self.log_scale.exp() * (projected @ items.T)
        return logits

    def pairs(self, hidden: Tensor, items: Tensor) -> Tensor:
        """(...) logits of (..., H) states, each with its own one of the (..., H) item vectors."""
        projected = self.project(hidden)
        if self.score == "dot":
            return (projected * items).sum(dim=-1)
        return self.log_scale.exp() * F.cosine_similarity(projected, items, dim=-1)


class WhenEmbedding(nn.Embedding):
    """(..., H) change of the state by the gap from the last event to the query time.

    It starts at zero. Code 0, for an unknown gap, is learned like the others.
    """

    def __init__(self, width: int) -> None:
        super().__init__(len(GAP_EDGES) + 1, width)
        nn.init.zeros_(self.weight)


MAX_LEVELS = 32
"""Maximum number of distinct labels of an ordinal scale."""


@dataclass(frozen=True, slots=True)
class FeedbackScale:
    """Statistics of the training labels, saved with the model.

    Attributes:
        behaviors: Behaviours that have labels, the one with most labels first.
        share: Share of the training events that have a label.
        mean: Mean label; for a binary label the share of ones.
        deviation: Standard deviation of the labels.
        levels: Distinct labels of an ordinal scale in ascending order, otherwise empty.
        shares: Share of each level.
    """

    behaviors: tuple[str, ...]
    share: float
    mean: float
    deviation: float
    levels: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    @classmethod
    def fit(cls, log: BehaviorLog, config: FeedbackHeadConfig) -> FeedbackScale:
        """Statistics of the labels of a training log.

        Raises:
            ConfigError: The log has no labels, all labels are equal, or an ordinal scale does not
                fit them.
        """
        column = feedback_labels(log, config)
        labelled = ~np.isnan(column)
        labels = column[labelled].astype(np.float64)
        if config.kind == "binary":
            labels = (labels >= config.positive_from).astype(np.float64)
        _check_labels(labels, config)
        counts = Counter(log.behaviors[labelled].tolist())
        names = [log.code_names.behaviors[code] for code, _ in counts.most_common()]
        levels, sizes = np.unique(labels, return_counts=True)
        ordinal = config.kind == "ordinal"
        return cls(
            behaviors=tuple(names),
            share=float(labelled.mean()),
            mean=float(labels.mean()),
            deviation=float(labels.std()),
            levels=tuple(levels.tolist()) if ordinal else (),
            shares=tuple((sizes / len(labels)).tolist()) if ordinal else (),
        )


def _check_labels(labels: np.ndarray, config: FeedbackHeadConfig) -> None:
    """Refuse labels that the kind of head cannot learn from."""
    levels = np.unique(labels)
    where = f"model.feedback_head, kind {config.kind!r}, label {config.label!r}"
    if len(levels) < 2:
        reason = "no training event has a label"
        if len(levels):
            value = f"{levels[0]:g}"
            if config.kind == "binary":
                value = f"{'at least' if levels[0] else 'below'} {config.positive_from:g}"
            reason = f"all {len(labels):,} training labels are {value}"
        raise ConfigError(
            reason,
            where=where,
            expected="at least two different labels",
            fix="set positive_from between the labels, or check label and behaviors",
        )
    if config.kind == "ordinal" and len(levels) > MAX_LEVELS:
        raise ConfigError(
            f"{len(levels):,} distinct labels",
            where=where,
            expected=f"at most {MAX_LEVELS} levels of an ordinal scale",
            fix="set kind to regression",
        )
    if config.kind == "ordinal" and not levels[0] < config.positive_from <= levels[-1]:
        raise ConfigError(
            f"positive_from is {config.positive_from:g}",
            where=where,
            expected=f"above the lowest label {levels[0]:g}, up to the highest {levels[-1]:g}",
            fix="set positive_from to the lowest label that counts as positive",
        )


class Link(nn.Module):
    """Meaning of a score for the label."""

    @abstractmethod
    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(N,) losses of (N,) scores for the (N,) labels of the log."""

    @abstractmethod
    def explained(self, scores: Tensor) -> Tensor:
        """(N,) values that attribution explains: log-odds, or the label of a regression."""

    def expected(self, scores: Tensor) -> Tensor | None:
        """(N,) expected label; None for a binary label."""
        return None


class BinaryLink(Link):
    """The score is the log-odds of a label of at least ``positive_from``."""

    def __init__(self, config: FeedbackHeadConfig, scale: FeedbackScale) -> None:
        super().__init__()
        self._from = config.positive_from
        self.base = nn.Parameter(torch.tensor(_logit(scale.mean)))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """See `Link`."""
        positive = (labels >= self._from).to(scores)
        return F.binary_cross_entropy_with_logits(scores + self.base, positive, reduction="none")

    def explained(self, scores: Tensor) -> Tensor:
        """(N,) log-odds of a positive label."""
        return scores + self.base


class OrdinalLink(Link):
    """Cumulative logits (McCullagh 1980): ``log-odds(label >= level k) = score - threshold k``.

    The first threshold is free, and each further one is a positive step above the one before.
    At the start every level is predicted with its share among the training labels.
    """

    levels: Tensor

    def __init__(self, config: FeedbackHeadConfig, scale: FeedbackScale) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(scale.levels))
        below = np.cumsum(scale.shares)[:-1]
        start = torch.tensor([_logit(float(share)) for share in below])
        self.first = nn.Parameter(start[:1].clone())
        self.steps = nn.Parameter(start.diff().clamp(min=1e-3).expm1().log())  # of softplus
        self._positive = int(np.searchsorted(scale.levels, config.positive_from)) - 1

    def thresholds(self) -> Tensor:
        """(K - 1,) ascending thresholds between K levels."""
        return torch.cat([self.first, self.first + F.softplus(self.steps).cumsum(dim=0)])

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(N,) negative log-probability of the label's level, or of the next level below it.

        With a = score - lower threshold and b = score - upper threshold,
        ``sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a))`` without loss of digits.
        """
        infinite = scores.new_full((1,), torch.inf)
        bounds = torch.cat([-infinite, self.thresholds().to(scores), infinite])
        level = (torch.bucketize(labels.to(self.levels), self.levels, right=True) - 1).clamp(min=0)
        lower, upper = bounds[level], bounds[level + 1]
        inside = torch.log1p(-torch.exp(lower - upper))
        return -(F.logsigmoid(scores - lower) + F.logsigmoid(upper - scores) + inside)

    def explained(self, scores: Tensor) -> Tensor:
        """(N,) log-odds of a label of at least ``positive_from``."""
        return scores - self.thresholds()[self._positive]

    def expected(self, scores: Tensor) -> Tensor:
        """(N,) expected label: the lowest level plus each step times its probability."""
        above = torch.sigmoid(scores[..., None] - self.thresholds())
        return self.levels[0] + (above * self.levels.diff()).sum(dim=-1)


class RegressionLink(Link):
    """The score is the standardised label; the loss is the squared error."""

    centre: Tensor
    spread: Tensor

    def __init__(self, config: FeedbackHeadConfig, scale: FeedbackScale) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor(scale.mean))
        self.register_buffer("spread", torch.tensor(scale.deviation))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """See `Link`."""
        return (scores - (labels - self.centre) / self.spread).square()

    def explained(self, scores: Tensor) -> Tensor:
        """(N,) labels in the units of the log."""
        return self.centre + self.spread * scores

    def expected(self, scores: Tensor) -> Tensor:
        """See `explained`."""
        return self.explained(scores)


LINKS: dict[str, type[BinaryLink | OrdinalLink | RegressionLink]] = {
    "binary": BinaryLink,
    "ordinal": OrdinalLink,
    "regression": RegressionLink,
}


class FeedbackHead(nn.Module):
    """The score of a candidate after a state.

    ``score = v . gelu(V [a; b; a * b] + c)`` with ``a = A state + B[behaviour]`` and
    ``b = C item``. States and item vectors are first scaled to the same length. Aggregate features
    and candidate features add a linear term; candidate features are also read by the hidden units.
    The score starts at 0, so an untrained head predicts the base rate.

    Args:
        width: Size H of states and item vectors.
        behaviors: Number of behaviours.
        config: Options of the head.
        scale: Statistics of the training labels.
        aggregates: Aggregate features; default: none.
        candidates: Candidate features; default: none.
    """

    def __init__(
        self,
        width: int,
        behaviors: int,
        config: FeedbackHeadConfig,
        scale: FeedbackScale,
        aggregates: AggregateFeatures | None = None,
        candidates: CandidateFeatures | None = None,
    ) -> None:
        super().__init__()
        size = config.hidden
        self.scale, self.aggregates, self.candidates = scale, aggregates, candidates
        if features := sum(part.size for part in (aggregates, candidates) if part is not None):
            self.wide = nn.Linear(features, 1, bias=False)
            # features get the length of a state, so one training step moves both terms alike
            self.wide_scale = math.sqrt(width / features)
            nn.init.zeros_(self.wide.weight)
        self.state, self.item = nn.Linear(width, size), nn.Linear(width, size, bias=False)
        self.behavior = nn.Embedding(behaviors, size)
        read = 3 * size + (0 if candidates is None else candidates.size)
        self.mix, self.score = nn.Linear(read, size), nn.Linear(size, 1, bias=False)
        self.taste = nn.Linear(size, 1, bias=False)
        self.quality = nn.Linear(width, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.taste.weight)
        nn.init.zeros_(self.quality.weight)
        nn.init.zeros_(self.behavior.weight)
        nn.init.zeros_(self.score.weight)
        self.link: Link = LINKS[config.kind](config, scale)

    def forward(self, query: QueryState, items: Tensor, behaviors: Tensor, codes: Tensor) -> Tensor:
        """(N,) float32 scores.

        Args:
            query: (N,) states before the candidates.
            items: (N, H) item vectors of the candidates.
            behaviors: (N,) behaviour codes of the candidates.
            codes: (N,) item codes of the candidates.
        """
        wide = [] if query.aggregates is None else [query.aggregates]
        if self.candidates is not None:
            wide.append(self.candidates(query.events, query.folds, codes))
        state = self.state(_scaled(query.hidden)) + self.behavior(behaviors)
        item = self.item(_scaled(items))
        read = [state, item, state * item, *([] if self.candidates is None else wide[-1:])]
        mixed = F.gelu(self.mix(torch.cat(read, dim=-1)))
        score = self.score(self.dropout(mixed)) + self.taste(state) + self.quality(_scaled(items))
        if wide:
            score = score + self.wide(torch.cat(wide, dim=-1) * self.wide_scale)
        return score.float()[..., 0]


class Heads(NamedTuple):
    """The heads of a model; those that the configuration leaves out are None."""

    item: ItemHead
    behavior: nn.Linear
    feedback: FeedbackHead | None
    when: WhenEmbedding | None


def make_heads(
    backbone: Backbone,
    encoder: Encoder,
    config: ModelConfig,
    scale: FeedbackScale | None,
    memory: Memory | None = None,
) -> Heads:
    """Untrained heads for a backbone.

    Args:
        backbone: The backbone whose states the heads read.
        encoder: Encoder of the histories.
        config: Options of the model.
        scale: Statistics of the training labels; None for a model without feedback head.
        memory: Memory of the item head; None for a model without.
    """
    width, behaviors = backbone.width, len(encoder.vocabulary.behaviors)
    feedback = None
    item, behavior = ItemHead(width, config.item_head, memory), nn.Linear(width, behaviors)
    if scale is not None:
        options, days = config.feedback_head, config.feedback_head.aggregate_days
        aggregates = None if days is None else AggregateFeatures(encoder, days)
        candidates = CandidateFeatures(encoder, options) if options.candidate_features else None
        feedback = FeedbackHead(width, behaviors, options, scale, aggregates, candidates)
    return Heads(item, behavior, feedback, WhenEmbedding(width) if config.when else None)


def _scaled(vectors: Tensor) -> Tensor:
    """Vectors of the same directions with length sqrt(H)."""
    return F.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
