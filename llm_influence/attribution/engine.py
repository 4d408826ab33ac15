"""States after many renderings: each is read once, and common beginnings are shared."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.budget import TokenBudget
from llm_influence.attribution.neutral import mean_vectors
from llm_influence.attribution.prefix_reader import PrefixReader, embedded, keeps_beginnings
from llm_influence.attribution.prefixes import count_tokens, paths
from llm_influence.attribution.renderings import Renderings
from llm_influence.modeling.model import InfluenceModel, inference
from llm_influence.types import IntArray

Precision = Literal["float32", "bfloat16"]

WORTH = 1.3
"""Shared beginnings are used where they save this many times the tokens."""
MOST_STATES = 200_000
"""States kept; when there are more, all are forgotten."""


class Engine:
    """Reads renderings and keeps the state after each, for any number of targets and methods.

    Args:
        model: The model, in eval mode while it reads.
        token_budget: Tokens of a batch, padding included; default: by chip and memory.
        share: Whether common beginnings are read once, where the backbone allows it.
        dtype: ``bfloat16`` computes the backbone in it; states stay float32.

    Attributes:
        tokens: Tokens read so far, padding not counted.
    """

    def __init__(
        self,
        model: InfluenceModel,
        *,
        token_budget: int | None = None,
        share: bool = True,
        dtype: Precision = "float32",
    ) -> None:
        self.model, self.dtype = model, dtype
        self.tokens = 0
        self._budget = TokenBudget(model, token_budget)
        self._share = share
        self._places: dict[bytes, int] = {}
        self._states: list[Tensor] = []

    def states(self, renderings: Renderings) -> Tensor:
        """(R, H) states after each rendering's last visible token.

        A rendering that was asked for before, or twice, is read once.
        """
        keys = _keys(renderings)
        if len(self._places) > MOST_STATES:
            self._places.clear()
            self._states.clear()
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self._places:
                first.setdefault(key, row)
        new = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        if len(new):
            for key, state in zip(first, self._read(renderings, new), strict=True):
                self._places[key] = len(self._states)
                self._states.append(state)
        return torch.stack([self._states[self._places[key]] for key in keys])

    def _read(self, renderings: Renderings, rows: IntArray) -> Tensor:
        """(n, H) states of the renderings numbered ``rows``."""
        while True:
            try:
                with inference(self.model), self._computing():
                    return self._shared(renderings, rows)
            except torch.OutOfMemoryError:
                if not self._budget.halve():
                    raise

    def _shared(self, renderings: Renderings, rows: IntArray) -> Tensor:
        means = mean_vectors(self.model)
        if self._share and _keeps_beginnings(self.model):
            records, owner, event = renderings.records()
            place = np.full(len(renderings), -1)
            place[rows] = np.arange(len(rows))
            wanted = place[owner] >= 0
            records, owner, event = records[wanted], place[owner[wanted]], event[wanted]
            roots = paths(records, owner, event)
            needed = count_tokens(roots)
            if len(owner) > WORTH * needed:
                self.tokens += needed
                reader = PrefixReader(self.model, records, means, self._budget)
                return reader.read(roots, len(rows))
        return self._whole(renderings, rows, means)

    def _whole(self, renderings: Renderings, rows: IntArray, means: Tensor) -> Tensor:
        """Every rendering from its beginning, in batches of like length."""
        found = torch.empty(len(rows), self.model.backbone.width)
        lengths = renderings.lengths[rows]
        self.tokens += int(lengths.sum())
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            size = max(1, self._budget.tokens // int(lengths[order[start]]))
            chosen = order[start : start + size]
            batch, neutral = renderings.batch(rows[chosen])
            batch, neutral = batch.to(self.model.device), neutral.to(self.model.device)
            vectors = embedded(self.model, batch.input_ids, batch.added_ids, neutral, means)
            found[chosen] = self.model.query(batch, vectors).float().cpu()
            start += size
        return found

    def _computing(self) -> torch.autocast:
        on = self.dtype == "bfloat16"
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=on)


def _keeps_beginnings(model: InfluenceModel) -> bool:
    """Asked of a model once."""
    if model not in _ABLE:
        _ABLE[model] = keeps_beginnings(model)
    return _ABLE[model]


_ABLE: WeakKeyDictionary[InfluenceModel, bool] = WeakKeyDictionary()


def _keys(renderings: Renderings) -> list[bytes]:
    """What each rendering says, in 16 bytes."""
    records, owner, event = renderings.records()
    table = np.ascontiguousarray(np.column_stack([event, records]))
    cuts = np.searchsorted(owner, np.arange(len(renderings) + 1))
    return [
        hashlib.blake2b(table[start:stop].tobytes(), digest_size=16).digest()
        for start, stop in pairwise(cuts.tolist())
    ]
