"""The engine: what the target is worth with any subset of the events.

Every perturbation method is a choice of masks and a formula over their values. Masks are
evaluated once however often they are asked for, sorted by length and run in batches under a token
budget, so the cost of a method is the number of distinct masks it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from llm_influence.attribution.targets import BoundTarget
from llm_influence.modeling.model import InfluenceModel, inference
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.types import BoolArray, FloatArray, History, IntArray

Removal = Literal["drop", "mask"]
REMOVALS: tuple[Removal, ...] = ("drop", "mask")
TOKEN_BUDGET = 4096
"""Tokens of a batch, padding included; affects speed and memory alone."""


class ValueFunction:
    """Values of one target for subsets of N histories' events.

    ``drop``: the other events never happened; the history is rendered again and the next gap is
    measured from the previous kept event. ``mask``: the other events' tokens are hidden from
    attention, everything else stays in its place. Without any event the frame alone is read.

    Args:
        model: The model.
        histories: N histories that fit the context (`Encoder.trim`).
        target: The target, bound to the same histories.
        removal: What "without an event" means.
        token_budget: Tokens of a batch.

    Attributes:
        passes: (N,) forward passes spent on each history so far.
    """

    def __init__(
        self,
        model: InfluenceModel,
        histories: Sequence[History],
        target: BoundTarget,
        removal: Removal = "drop",
        *,
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self._model, self._histories, self._target = model, histories, target
        self.removal = removal
        self._token_budget = token_budget
        self._known: list[dict[bytes, float]] = [{} for _ in histories]
        self.passes: IntArray = np.zeros(len(histories), dtype=np.int64)

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """Values of masks.

        Args:
            masks: For each of the N histories an (M, E) bool array, True where an event is kept;
                M may differ between histories.

        Returns:
            For each history the (M,) values, log-odds.
        """
        wanted = [
            (row, mask)
            for row, rows_masks in enumerate(masks)
            for mask in {m.tobytes(): m for m in rows_masks}.values()
            if mask.tobytes() not in self._known[row]
        ]
        with inference(self._model):
            for part, batch in self._batches(wanted):
                rows = torch.tensor([row for row, _ in part])
                prediction = self._model(batch.to(self._model.device))
                values = self._target.values(prediction, rows).cpu().double().numpy()
                for (row, mask), value in zip(part, values, strict=True):
                    self._known[row][mask.tobytes()] = float(value)
                    self.passes[row] += 1
        return [
            np.array([self._known[row][mask.tobytes()] for mask in rows_masks])
            for row, rows_masks in enumerate(masks)
        ]

    def restart(self) -> None:
        """Count passes from zero; values that are known stay known."""
        self.passes = np.zeros_like(self.passes)

    def ends(self) -> tuple[FloatArray, FloatArray]:
        """(N,) values without any event, and (N,) values with all events."""
        sizes = [len(history) for history in self._histories]
        both = self([np.stack([np.zeros(n, dtype=bool), np.ones(n, dtype=bool)]) for n in sizes])
        return np.array([v[0] for v in both]), np.array([v[1] for v in both])

    def _batches(
        self, wanted: list[tuple[int, BoolArray]]
    ) -> Iterator[tuple[list[tuple[int, BoolArray]], EncodedBatch]]:
        """Encoded batches under the token budget, longest first, with what each row asks."""
        encoder = self._model.encoder
        if self.removal == "drop":
            encoded = encoder.encode([self._histories[row].keep(mask) for row, mask in wanted])
            places = np.arange(len(wanted))
        else:
            encoded = encoder.encode(self._histories)
            places = np.array([row for row, _ in wanted], dtype=np.int64)
        lengths = np.diff(encoded.offsets)[places] if len(wanted) else np.zeros(0, dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            size = max(1, self._token_budget // int(lengths[order[start]]))
            chosen = order[start : start + size]
            part = [wanted[i] for i in chosen]
            batch = collate(encoded, places[chosen])
            yield part, batch if self.removal == "drop" else _hidden(batch, part)
            start += size


def _hidden(batch: EncodedBatch, part: Sequence[tuple[int, BoolArray]]) -> EncodedBatch:
    kept = np.zeros((len(part), batch.ends.shape[1] - 1), dtype=bool)
    for i, (_, mask) in enumerate(part):
        kept[i, : len(mask)] = mask
    return batch.hide(torch.from_numpy(kept))
