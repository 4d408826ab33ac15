"""The function that every peer explains: which events are kept -> the target's log-odds."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch

from llm_influence.attribution.target import BoundTarget
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.types import BoolArray, History

Floats = npt.NDArray[np.float64]
BUDGETS = (512, 1024, 2048, 4096, 8192)
"""Tokens of a batch that are tried on a peer's behalf."""


class Function(ABC):
    """What a peer explains: (M, E) masks in, (M,) values out; counts the masks it was asked for.

    Args:
        size: Events E.

    Attributes:
        evaluations: Masks evaluated so far, repeated ones included.
    """

    def __init__(self, size: int) -> None:
        self.size, self.evaluations = size, 0

    def __call__(self, masks: npt.ArrayLike) -> Floats:
        """(M,) values of (M, E) masks, True where an event is kept."""
        kept = np.asarray(masks, dtype=bool)
        self.evaluations += len(kept)
        return self.values(kept)

    def tensor(self, masks: torch.Tensor) -> torch.Tensor:
        """The same for Captum: (M, E) numbers of 0 and 1 in, (M,) values out."""
        return torch.from_numpy(self(masks.numpy() > 0.5)).float()

    @abstractmethod
    def values(self, masks: BoolArray) -> Floats:
        """Evaluate."""


class TableFunction(Function):
    """Values of all 2^E coalitions, computed before: event e is bit e of a value's place.

    Errors of estimators are the same on it as on the model, and cost nothing to find.
    """

    def __init__(self, table: Floats) -> None:
        super().__init__(int(table.size).bit_length() - 1)
        self._table = table

    def values(self, masks: BoolArray) -> Floats:
        """Look up."""
        return self._table[masks @ (1 << np.arange(self.size))]


class MaskedFunction(Function):
    """Log-odds of one history's target with any subset of its events, removal ``drop``.

    Masks of one call are rendered, sorted by length and run in batches under a token budget.
    Nothing is remembered between calls and no work is shared between masks: a pass is a mask.

    Args:
        model: The model, in eval mode.
        history: The history; it fits the context.
        target: The target, bound to this history alone.
        token_budget: Tokens of a batch, padding included.
    """

    def __init__(
        self,
        model: InfluenceModel,
        history: History,
        target: BoundTarget,
        token_budget: int = 4096,
    ) -> None:
        super().__init__(len(history))
        self._model, self._history, self._target = model, history, target
        self._token_budget = token_budget

    def values(self, masks: BoolArray) -> Floats:
        """Render, sort, run in batches."""
        encoded = self._model.encoder.encode([self._history.keep(mask) for mask in masks])
        lengths = np.diff(encoded.offsets)
        order = np.argsort(-lengths, kind="stable")
        values, start = np.empty(len(masks)), 0
        with inference(self._model):
            while start < len(order):
                rows = order[start : start + max(1, self._token_budget // lengths[order[start]])]
                prediction = self._model(collate(encoded, rows).to(self._model.device))
                found = self._target.values(prediction, torch.zeros(len(rows), dtype=torch.long))
                values[rows] = found.double().cpu().numpy()
                start += len(rows)
        return values


def best_token_budget(
    model: InfluenceModel, history: History, target: BoundTarget, *, masks: int = 128
) -> int:
    """The token budget of `BUDGETS` that evaluates random masks of ``history`` the fastest."""
    draw = np.random.default_rng(0).random((masks, len(history))) < 1 / 2
    seconds = {}
    for budget in BUDGETS:
        function = MaskedFunction(model, history, target, budget)
        function(draw[:8])
        begun = time.perf_counter()
        function(draw)
        seconds[budget] = time.perf_counter() - begun
    return min(seconds, key=seconds.__getitem__)
