"""Baselines of a like without a model: means of the film, of the user, and both biases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.settings import LIKED_FROM
from llm_influence.data.splits import EvaluationSet, Split

Score = Callable[[EvaluationSet], np.ndarray]
"""From N examples to (N,) log-odds."""


def item_mean(split: Split, shrinkage: float) -> Score:
    """The film's share of likes in training, shrunk towards that of all by so many ratings."""
    liked = split.train.values >= LIKED_FROM
    size = len(split.log.catalogue)
    likes = np.bincount(split.train.items, weights=liked, minlength=size)
    counts = np.bincount(split.train.items, minlength=size)
    odds = _shrunk(likes, counts, liked.mean(), shrinkage)
    return lambda rows: odds[rows.target_items]


def user_mean(split: Split, shrinkage: float) -> Score:
    """The user's share of likes in the history, shrunk likewise."""
    liked = split.log.values >= LIKED_FROM
    mean = (split.train.values >= LIKED_FROM).mean()
    before = np.append(0, np.cumsum(liked))

    def score(rows: EvaluationSet) -> np.ndarray:
        likes = before[rows.events] - before[split.log.offsets[rows.users]]
        return _shrunk(likes, rows.positions, mean, shrinkage)

    return score


def biases(split: Split, shrinkage: float) -> Score:
    """Logistic regression on user and film, both shrunk; fitted on training alone."""
    log, trained = split.log, split.parts() == 0
    users, items = (torch.from_numpy(c[trained]).long() for c in (log.rows_of_users(), log.items))
    liked = torch.from_numpy(log.values[trained] >= LIKED_FROM).double()
    of_user, of_item = (nn.Embedding(n, 1).double() for n in (len(log), len(log.catalogue)))
    base = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    weights = [of_user.weight, of_item.weight, base]
    for weight in weights[:2]:
        nn.init.zeros_(weight)
    optimizer = torch.optim.LBFGS(weights, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        odds = base + of_user(users)[:, 0] + of_item(items)[:, 0]
        misfit = F.binary_cross_entropy_with_logits(odds, liked, reduction="sum")
        size = sum(weight.square().sum() for weight in weights[:2])
        total = (misfit + shrinkage / 2 * size) / len(liked)
        total.backward()
        return total

    optimizer.step(loss)
    user_odds, item_odds = (w.detach().numpy()[:, 0] for w in weights[:2])
    middle = float(base.detach())
    return lambda rows: middle + user_odds[rows.users] + item_odds[rows.target_items]


BASELINES: dict[str, Callable[[Split, float], Score]] = {
    "item mean": item_mean,
    "user mean": user_mean,
    "user and item bias": biases,
}


def _shrunk(likes: np.ndarray, counts: np.ndarray, mean: float, by: float) -> np.ndarray:
    """Log-odds of a share of likes, given ``by`` ratings of the mean."""
    share = (likes + by * mean) / (counts + by)
    return np.log(share) - np.log1p(-share)
