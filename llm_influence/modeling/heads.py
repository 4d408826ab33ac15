"""From the state after an event to scores of what comes next.

Feedback on a candidate: will it be clicked, bought, liked, and how much?

One small network gives a score to a state and a candidate; a *link* says what the score means for
the label, as in a generalised linear model: log-odds of a binary label, the place on the scale of
an ordinal one, a number of standard deviations of a value.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.config.model import FeedbackHeadConfig, ItemHeadConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import feedback_labels
from llm_influence.errors import ConfigError
from llm_influence.modeling.counts import AggregateFeatures, RepeatCounts
from llm_influence.rendering.time_words import GAP_EDGES


class ItemHead(nn.Module):
    """Logits of the next item: the projected state against every item vector.

    ``cosine`` divides the cosine by a learned temperature; ``dot`` takes the plain product. The
    projection starts as the identity, so that before training a state scores items by meaning.
    With ``repeats`` the logits of items that were seen grow by how often they were.
    """

    def __init__(
        self, width: int, config: ItemHeadConfig, repeats: RepeatCounts | None = None
    ) -> None:
        super().__init__()
        self.score, self.width, self.repeats = config.score, width, repeats
        self.project = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, states: Tensor, items: Tensor) -> Tensor:
        """(..., I) logits from (..., H) states and (I, H) item vectors.

        If something stands behind the states, it is what was seen (`InfluenceModel.remember`), and
        the items must be the whole catalogue: counts are added to chances.
        """
        states, behind = states[..., : self.width], states[..., self.width :]
        projected = self.project(states)
        if self.score == "dot":
            logits = projected @ items.T
        else:
            projected, items = F.normalize(projected, dim=-1), F.normalize(items, dim=-1)
            logits = self.log_scale.exp() * (projected @ items.T)
        if self.repeats is None or not behind.shape[-1]:
            return logits
        found: Tensor = self.repeats(logits, states, behind[..., : 2 * self.repeats.slots])
        return found

    def pairs(self, states: Tensor, items: Tensor) -> Tensor:
        """(...) logits of (..., H) states, each with its own one of the (..., H) item vectors."""
        states = self.project(states)
        if self.score == "dot":
            return (states * items).sum(dim=-1)
        return self.log_scale.exp() * F.cosine_similarity(states, items, dim=-1)


class BehaviorHead(nn.Linear):
    """(..., behaviours) logits of the next behaviour."""

    def forward(self, states: Tensor) -> Tensor:
        """See the class; what stands behind the (..., H) states is not read."""
        return super().forward(states[..., : self.in_features])


class WhenEmbedding(nn.Embedding):
    """(..., H) what the gap from the last event to the question adds to the state of every head.

    It starts at zero, and code 0 (no event, or nobody knows when) is a code like the others.
    """

    def __init__(self, width: int) -> None:
        super().__init__(len(GAP_EDGES) + 1, width)
        nn.init.zeros_(self.weight)


MOST_LEVELS = 32
"""Distinct labels of an ordinal scale; a label with more of them is a number."""


@dataclass(frozen=True, slots=True)
class FeedbackScale:
    """What the labels of training look like; kept with the model.

    Attributes:
        behaviors: Behaviours that are asked, the one with most labels first.
        share: Share of the training events that are asked.
        mean: Mean label; of a binary label the share of ones.
        deviation: Standard deviation of the labels.
        levels: The distinct labels of an ordinal scale, ascending; else empty.
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
        """The scale of a training log.

        Raises:
            ConfigError: The log has no label to learn from, or labels of one sort alone.
        """
        every = feedback_labels(log, config)
        asked = ~np.isnan(every)
        labels = every[asked].astype(np.float64)
        if config.kind == "binary":
            labels = (labels >= config.positive_from).astype(np.float64)
        _check(labels, config)
        counts = Counter(log.behaviors[asked].tolist())
        names = [log.code_names.behaviors[code] for code, _ in counts.most_common()]
        levels, sizes = np.unique(labels, return_counts=True)
        ordinal = config.kind == "ordinal"
        return cls(
            behaviors=tuple(names),
            share=float(asked.mean()),
            mean=float(labels.mean()),
            deviation=float(labels.std()),
            levels=tuple(levels.tolist()) if ordinal else (),
            shares=tuple((sizes / len(labels)).tolist()) if ordinal else (),
        )


def _check(labels: np.ndarray, config: FeedbackHeadConfig) -> None:
    """Refuse labels from which the kind of head can learn nothing."""
    levels = np.unique(labels)
    where = f"model.feedback_head, kind {config.kind!r}, label {config.label!r}"
    if len(levels) < 2:
        found = f"all {len(labels):,} labels of training are {levels[0]:g}" if len(levels) else ""
        if len(levels) and config.kind == "binary":
            side = "at least" if levels[0] else "below"
            found = f"all {len(labels):,} labels of training are {side} {config.positive_from:g}"
        raise ConfigError(
            found or "no event of training has a label",
            where=where,
            expected="labels of at least two sorts",
            fix="set positive_from between the labels, or check label and behaviors",
        )
    if config.kind == "ordinal" and len(levels) > MOST_LEVELS:
        raise ConfigError(
            f"{len(levels):,} distinct labels",
            where=where,
            expected=f"at most {MOST_LEVELS} levels of an ordinal scale",
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
    """What a score means for the label."""

    @abstractmethod
    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(N,) losses of (N,) scores, given the (N,) labels as the log has them."""

    @abstractmethod
    def explained(self, scores: Tensor) -> Tensor:
        """(N,) what attribution explains: log-odds, or of a regression the label itself."""

    def expected(self, scores: Tensor) -> Tensor | None:
        """(N,) expected label in its own units; None for a binary one."""
        return None


class BinaryLink(Link):
    """The score is the log-odds of a label of at least ``positive_from``; binary cross-entropy."""

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

    Thresholds ascend: the first is free, each further one lies a positive step above the one
    before. They start where the levels of training have the shares that they have.
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
        """(N,) negative log-probability of the label's level; of another label, the next below.

        With a = score - lower threshold and b = score - upper one,
        ``sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a))``, which loses no digits.
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
        """(N,) expected label: the lowest level and each step up by its probability."""
        above = torch.sigmoid(scores[..., None] - self.thresholds())
        return self.levels[0] + (above * self.levels.diff()).sum(dim=-1)


class RegressionLink(Link):
    """The score is the label in standard deviations from its mean; squared error."""

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
        """(N,) the label, in its own units."""
        return self.centre + self.spread * scores

    def expected(self, scores: Tensor) -> Tensor:
        """The same."""
        return self.explained(scores)


LINKS: dict[str, type[BinaryLink | OrdinalLink | RegressionLink]] = {
    "binary": BinaryLink,
    "ordinal": OrdinalLink,
    "regression": RegressionLink,
}


class FeedbackHead(nn.Module):
    """The score of a candidate after a state.

    ``score = v . gelu(V [a; b; a * b] + c)`` with ``a = A state + B[behaviour]`` and
    ``b = C item``; states and item vectors are brought to the same length first. Where heads see
    "when", the state holds the gap already. With totals a linear term of these is added. The score
    starts at 0, so that every answer starts at training's base rate.

    Args:
        width: Size H of states and item vectors.
        behaviors: Number of behaviours.
        config: The head's options.
        scale: What the labels of training look like.
        totals: What is summed up behind the states, for a linear term of its own; default: nothing.
    """

    def __init__(
        self,
        width: int,
        behaviors: int,
        config: FeedbackHeadConfig,
        scale: FeedbackScale,
        totals: AggregateFeatures | None = None,
    ) -> None:
        super().__init__()
        size = config.hidden
        self.scale, self.totals = scale, totals
        if totals is not None:
            self.wide = nn.Linear(totals.size, 1, bias=False)
            # as long as a state, so that a step of training moves the score by either alike
            self.wide_scale = math.sqrt(width / totals.size)
            nn.init.zeros_(self.wide.weight)
        self.state, self.item = nn.Linear(width, size), nn.Linear(width, size, bias=False)
        self.behavior = nn.Embedding(behaviors, size)
        self.mix, self.score = nn.Linear(3 * size, size), nn.Linear(size, 1, bias=False)
        self.taste = nn.Linear(size, 1, bias=False)
        self.quality = nn.Linear(width, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.taste.weight)
        nn.init.zeros_(self.quality.weight)
        nn.init.zeros_(self.behavior.weight)
        nn.init.zeros_(self.score.weight)
        self.link: Link = LINKS[config.kind](config, scale)

    def forward(self, states: Tensor, items: Tensor, behaviors: Tensor) -> Tensor:
        """(N,) float32 scores.

        Args:
            states: (N, Q) states before the candidates, as `InfluenceModel.remember` gives them.
            items: (N, H) the candidates' item vectors.
            behaviors: (N,) codes of the candidates' behaviours.
        """
        own = _levelled(states[..., : self.state.in_features])
        state = self.state(own) + self.behavior(behaviors)
        item = self.item(_levelled(items))
        mixed = F.gelu(self.mix(torch.cat([state, item, state * item], dim=-1)))
        found = self.score(self.dropout(mixed)) + self.taste(state) + self.quality(_levelled(items))
        if self.totals is not None:
            found = found + self.wide(states[..., -self.totals.size :] * self.wide_scale)
        return found.float()[..., 0]


def _levelled(vectors: Tensor) -> Tensor:
    """The same directions, length sqrt(H)."""
    return F.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
