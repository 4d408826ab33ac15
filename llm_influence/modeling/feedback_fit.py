"""Fit of the candidate features, and the start of the linear term that reads features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import feedback_labels
from llm_influence.modeling.aggregates import AggregateFeatures
from llm_influence.modeling.candidates import CandidateFeatures, user_folds
from llm_influence.modeling.counts import records_before
from llm_influence.modeling.heads import FeedbackHead
from llm_influence.rendering.encoder import Encoder, collate
from llm_influence.types import FloatArray

FITTED_USERS = 2048
"""Number of users with labels whose events standardise the features and start the linear term."""
PENALTY = 1.0
"""Penalty of a squared weight of the linear term, beside the summed loss of the labels."""


def fit_candidates(
    head: FeedbackHead,
    config: FeedbackHeadConfig,
    log: BehaviorLog,
    encoder: Encoder,
    texts: Tensor,
) -> None:
    """Fit the candidate features of a head, and start its linear term and its link.

    The linear term starts as the penalised regression of the training labels on all features, by
    the loss of the link. So an untrained head predicts what the features alone can predict.

    Args:
        head: The head; without candidate features nothing is done.
        config: Options of the head.
        log: Training events.
        encoder: Encoder of the histories.
        texts: (I, H) vectors of the items' texts; H may be 0.
    """
    candidates = head.candidates
    if candidates is None:
        return
    labels = feedback_labels(log, config).astype(np.float64)
    known = ~np.isnan(labels)
    targets = labels
    if config.kind == "binary":
        targets = np.where(known, labels >= config.positive_from, np.nan)
    candidates.fit_tables(log, targets, texts)
    users = np.unique(log.rows_of_users()[known])
    users = users[np.linspace(0, len(users) - 1, min(len(users), FITTED_USERS)).astype(int)]
    folds = user_folds(log.user_ids.take(users).to_pylist())
    samples = [
        _sample(head.aggregates, candidates, log, encoder, labels, user, fold)
        for user, fold in zip(users.tolist(), folds.tolist(), strict=True)
    ]
    sums, raw, answers = (torch.cat(part) for part in zip(*samples, strict=True))
    _start(head, torch.cat([sums, candidates.fit_scale(raw)], dim=1), answers)


@torch.no_grad()
def _sample(
    aggregates: AggregateFeatures | None,
    candidates: CandidateFeatures,
    log: BehaviorLog,
    encoder: Encoder,
    labels: FloatArray,
    user: int,
    fold: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Aggregate features, candidate features and labels at the labels of a user's last events."""
    batch = collate(encoder.encode([log.at(user)]))
    kept, stop = int(batch.num_events[0]), int(log.offsets[user + 1])
    known = torch.from_numpy(~np.isnan(labels[stop - kept : stop]))
    presence = (batch.attention_mask & (batch.event_index >= 0)).float()
    places = batch.ends[:, :-1]
    records, _ = records_before(batch, places)
    folds = torch.tensor([fold])
    events = candidates.events(records, candidates.shares(batch, presence), folds)[0]
    raw = candidates.raw(events, folds.expand(kept), batch.records[0, :, 0])
    sums = raw[:, :0] if aggregates is None else aggregates(batch, places, presence)[0]
    answers = torch.from_numpy(labels[stop - kept : stop]).float()
    return sums[known], raw[known], answers[known]


def _start(head: FeedbackHead, features: Tensor, labels: Tensor) -> None:
    """Set the linear term and the link to the best ones for (N, F) features alone."""
    weights = [head.wide.weight, *head.link.parameters()]
    optimizer = torch.optim.LBFGS(weights, max_iter=200, line_search_fn="strong_wolfe")
    features = features * head.wide_scale

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = head.link.loss(head.wide(features)[:, 0], labels)
        size = (head.wide.weight * head.wide_scale).square().sum()
        total: Tensor = losses.mean() + PENALTY / 2 * size / len(labels)
        total.backward()
        return total

    optimizer.step(loss)
    optimizer.zero_grad()
