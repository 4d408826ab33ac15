"""Baselines: scores that do not use the model. A useful explanation is better than these."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from llm_influence.attribution.registry import (
    Attribution,
    Method,
    Task,
    register,
    share_attribution,
)
from llm_influence.errors import ExplanationError
from llm_influence.types import FloatArray


class Baseline(Method):
    """Shares of events from data that need no prediction."""

    family = "baseline"
    units = "share"
    cost = "2 model evaluations, for the completeness gap alone"

    @abstractmethod
    def amounts(self, task: Task) -> list[FloatArray]:
        """N arrays (E,) of amounts, to be divided by their sums."""

    def run(self, task: Task) -> Attribution:
        """See `Method.run`."""
        amounts = [row if row.any() else np.ones(len(row)) for row in self.amounts(task)]
        return share_attribution(task, amounts, np.zeros(len(amounts)))


@register
@dataclass(frozen=True)
class RandomScores(Baseline):
    """Shares drawn uniformly from the simplex; seeded by user, so any batch gives the same."""

    name = "random"
    estimates = "nothing"
    equation = "a drawn from a flat Dirichlet"
    caution = "A lower bound for comparisons, never an explanation."

    def amounts(self, task: Task) -> list[FloatArray]:
        """See `Baseline.amounts`."""
        pairs = zip(task.generators(), task.sizes, strict=True)
        return [draw.dirichlet(np.ones(size)) for draw, size in pairs]


@register
@dataclass(frozen=True)
class Recency(Baseline):
    """Shares that halve with every step into the past."""

    name = "recency"
    estimates = "how recent an event is"
    equation = "a_i = 2^(i - E) / sum of all"
    caution = (
        "Often near the truth for the wrong reason: sequence models do favour the last events."
    )

    def amounts(self, task: Task) -> list[FloatArray]:
        """See `Baseline.amounts`."""
        return [0.5 ** np.arange(size, dtype=np.float64)[::-1] for size in task.sizes]


@register
@dataclass(frozen=True)
class Popularity(Baseline):
    """Shares by the number of training events with each event's item; equal where all are 0."""

    name = "popularity"
    estimates = "how popular an event's item is"
    equation = "a_i = training events with i's item / sum of all"
    caution = "Does not depend on the user or the target."

    def amounts(self, task: Task) -> list[FloatArray]:
        """See `Baseline.amounts`."""
        vocabulary = task.model.encoder.vocabulary
        if vocabulary.counts is None:
            raise ExplanationError(
                "the model has no counts of its items",
                where="method 'popularity'",
                expected="a model folder with counts.npy",
                fix="fine-tune again, or use another baseline",
            )
        counts = vocabulary.counts.astype(np.float64)
        return [counts[vocabulary.item_codes(history)] for history in task.histories]


@register
@dataclass(frozen=True)
class ItemSimilarity(Baseline):
    """Shares by the cosine of text vectors of item and target; equal where no item is similar.

    The vectors are those of the items' texts under the untuned backbone, less their mean.

    Raises:
        ExplanationError: When it runs: the target is a behaviour, or the model has no text vectors
            of its items (a recurrent backbone without words).
    """

    name = "item_similarity"
    estimates = "how similar an event's item and the target are, by their texts"
    equation = "a_i = max(0, cos(text of i's item, text of the target)) / sum of all"
    caution = "Ignores behaviours and times. Of a contrast or slate only the first item counts."

    def amounts(self, task: Task) -> list[FloatArray]:
        """See `Baseline.amounts`."""
        if task.target.kind == "behavior":
            raise ExplanationError(
                f"the target is a {task.target.kind}",
                where="method 'item_similarity'",
                expected="an item, a contrast of two, or a slate",
                fix="explain an item, or use another baseline",
            )
        if not task.model.embeddings.has_words:
            raise ExplanationError(
                "no language model has read the items' texts",
                where=f"method 'item_similarity', backbone {task.model.backbone.source!r}",
                expected="items with text vectors",
                fix="train with model.recurrent.words, or use another baseline",
            )
        texts = task.model.embeddings.words[task.model.first_item :]  # (I, D), length one
        vocabulary = task.model.encoder.vocabulary
        targets = task.target.codes.reshape(len(task.histories), -1)[:, 0].tolist()
        amounts = []
        for history, target in zip(task.histories, targets, strict=True):
            codes = vocabulary.item_codes(history).astype(np.int64)
            cosines = texts[torch.from_numpy(codes).to(texts.device)] @ texts[target]
            amounts.append(cosines.double().cpu().numpy().clip(min=0))
        return amounts
