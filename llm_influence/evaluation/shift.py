"""Shift by removal: the part of old events' scores that they all have in common.

A removal may move the prediction for a reason that no event is responsible for: all later events
have another position, or the history is shorter. Then the scores of the oldest events share one
large value of one sign, and their differences, which are the signal, are small beside it:

    shift = |mean of the scores of the oldest half| / standard deviation of these scores
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from llm_influence.errors import ExplanationError, out_of_range
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import Ensemble, InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.rendering.encoder import collate
from llm_influence.types import BoolArray, FloatArray, History

LEAST_EVENTS = 6
"""Shortest history that is measured: below, the oldest half has fewer than three events."""


@dataclass(frozen=True, slots=True)
class RemovalShift:
    """Scores of the oldest half of the events of N users, for each user's first recommendation.

    Attributes:
        mean: (N,) mean score, in log-odds.
        spread: (N,) standard deviation of the scores.
        total: (N,) sum of the scores of all events.
    """

    mean: FloatArray
    spread: FloatArray
    total: FloatArray

    @classmethod
    def of(cls, scores: Sequence[FloatArray]) -> Self:
        """From N arrays of scores, oldest event first; of at least two events each."""
        old = [score[: len(score) // 2] for score in scores]
        return cls(
            np.array([score.mean() for score in old]),
            np.array([score.std() for score in old]),
            np.array([score.sum() for score in scores]),
        )

    @property
    def shift(self) -> float:
        """Median over users of the size of the mean over the spread; nan without users."""
        known = self.spread > 0
        if not known.any():
            return float("nan")
        return float(np.median(np.abs(self.mean[known]) / self.spread[known]))

    @property
    def opposed(self) -> float:
        """Share of users whose scores have a negative sum; nan without users."""
        return float(np.mean(self.total < 0)) if len(self.total) else float("nan")


def removal_shift(
    model: InfluenceModel, histories: Sequence[History], *, batch_size: int = 64
) -> RemovalShift:
    """Measure the shift of a model: each event alone is removed, as by removal ``drop``.

    The score of an event is that of the method ``leave_one_out``: the log-odds of the first
    recommendation, minus those without the event.

    Args:
        model: A trained model with an item head, or an ensemble.
        histories: Histories of any users; those with fewer than 6 events in the context are left
            out.
        batch_size: Number of renderings at a time.

    Raises:
        ExplanationError: The model predicts no items.
    """
    if not model.config.item_head.weight:
        raise out_of_range(
            ExplanationError, "item_head.weight", 0, expected="above 0: the target is an item"
        )
    members = list(model.models) if isinstance(model, Ensemble) else [model]
    encoders = [member.encoder for member in members]
    scores = []
    for history in histories:
        whole = min((encoder.trim(history) for encoder in encoders), key=len)
        if len(whole) >= LEAST_EVENTS and (best := model.recommend(whole, 1)):
            item = model.catalogue.index([best[0].item])[0]
            scores.append(_leave_one_out(model, whole, int(item), batch_size))
    return RemovalShift.of(scores)


def _leave_one_out(model: InfluenceModel, whole: History, item: int, batch_size: int) -> FloatArray:
    """(E,) scores of the events of a history that fits the context."""
    kept = np.concatenate([np.ones((1, len(whole)), dtype=bool), ~np.eye(len(whole), dtype=bool)])
    values = []
    for start in range(0, len(kept), batch_size):
        masks = kept[start : start + batch_size]
        with inference(model):
            logits = model.heads(_read(model, whole, masks)).item_logits.double().cpu()
        values.append(log_odds(logits, torch.full((len(masks),), item)))
    odds = torch.cat(values).numpy()
    return odds[0] - odds[1:]


def _read(model: InfluenceModel, whole: History, masks: BoolArray) -> Any:  # noqa: ANN401
    """Input of the heads after each coalition; kept events keep their age and distance."""
    if isinstance(model, Ensemble):
        return tuple(_read(member, whole, masks) for member in model.models)
    encoded = model.encoder.encode([whole.keep(mask) for mask in masks])
    own = model.encoder.encode([whole])
    kept = [own.records[mask] for mask in masks]
    shown = [part[len(part) - n :] for part, n in zip(kept, encoded.num_events, strict=True)]
    gap = own.gap.repeat(len(masks))
    return model.query(
        collate(replace(encoded, records=np.concatenate(shown), gap=gap)).to(model.device)
    )
