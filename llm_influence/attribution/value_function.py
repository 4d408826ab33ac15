"""What the target is worth with any subset of the players.

Every perturbation method is a choice of masks and a formula over their values. The engine reads
each distinct rendering once, whatever target, method or user asks, so the cost of a method is the
number of distinct renderings that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import OWN, Players, Removal, Renderings, render
from llm_influence.attribution.target import BoundTarget
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, FloatArray, History, IntArray

ROWS = 256
"""States whose targets are computed at a time; affects memory alone."""


class ValueFunction:
    """Values of one target for subsets of the players of N histories.

    Removals: see `llm_influence.attribution.renderings`. Without any event the prompt alone is
    read.

    Args:
        model: The model.
        histories: N histories that fit the context (`Encoder.trim`).
        target: The target, bound to the same histories.
        removal: What "without a player" means.
        players: Who is kept or removed.
        engine: Reads and remembers; default: a new one. Share it between targets and methods.

    Attributes:
        evaluations: (N,) coalitions asked of each history so far, each counted once. The engine may
            read fewer: what another user, target or method has asked for is known.
        bfloat16_error: Largest difference from float32 that a value has shown so far, on
            renderings read both ways (`Engine`); nan where none was.

    Raises:
        ExplanationError: Parts of events cannot be dropped.
    """

    def __init__(
        self,
        model: InfluenceModel,
        histories: Sequence[History],
        target: BoundTarget,
        removal: Removal = "drop",
        *,
        players: Players | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.players = players or Players()
        self.players.check_removal(removal)
        self._model, self._histories, self._target = model, histories, target
        self.removal = removal
        self.engine = engine or Engine(model)
        self._known: list[dict[bytes, float]] = [{} for _ in histories]
        self.evaluations: IntArray = np.zeros(len(histories), dtype=np.int64)
        self.bfloat16_error = float("nan")

    @property
    def sizes(self) -> list[int]:
        """(N,) players of each history."""
        if self.players.are_events:
            return [len(history) for history in self._histories]
        return [len(self.players.of(h, self._model.encoder)) for h in self._histories]

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """Values of masks.

        Args:
            masks: For each of the N histories an (M, P) bool array, True where a player is kept;
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
        if wanted:
            self._compute([row for row, _ in wanted], [mask for _, mask in wanted])
        return [
            np.array([self._known[row][mask.tobytes()] for mask in rows_masks])
            for row, rows_masks in enumerate(masks)
        ]

    def _compute(self, rows: Sequence[int], masks: Sequence[BoolArray]) -> None:
        encoder = self._model.encoder
        read = render(encoder, self._histories, self.players, rows, masks, self.removal)
        states = self.engine.states(read)
        np.add.at(self.evaluations, rows, 1)
        numbers = np.asarray(rows)
        values = self._values(states, read, np.arange(len(read)), numbers)
        for row, mask, value in zip(rows, masks, values.tolist(), strict=True):
            self._known[row][mask.tobytes()] = value
        sampled, exact = self.engine.exact_states(read)
        if sampled:
            places = np.array(sampled)
            errors = np.abs(values[places] - self._values(exact, read, places, numbers[places]))
            self.bfloat16_error = float(np.nanmax([self.bfloat16_error, *errors]))
            self.engine.note_errors(errors)

    def _values(
        self, states: Tensor, read: Renderings, places: IntArray, rows: IntArray
    ) -> FloatArray:
        """(B,) values at (B, H) states of the histories numbered ``rows``.

        The gaps to the examples and what was seen come in here, after the engine, from the
        renderings numbered ``places`` (B,): states do not hold them, so what is shared between
        renderings stays shared.
        """
        found = []
        with inference(self._model):
            for start in range(0, len(states), ROWS):
                part = slice(start, start + ROWS)
                prediction = self._model.heads(self._queries(states[part], read, places[part]))
                values = self._target.values(prediction, torch.from_numpy(rows[part]))
                found.append(values.cpu().double())
        return torch.cat(found).numpy()

    def _queries(self, states: Tensor, read: Renderings, places: IntArray) -> Tensor:
        """(B, Q) what heads read, from the (B, H) states of some renderings."""
        model = self._model
        states = states.to(model.device)
        if not model.counts:  # a batch need not be made
            return model.asked(states, torch.from_numpy(read.encoded.when[places]))
        batch, neutral = read.batch(places)
        own = (neutral == OWN).to(model.device)
        return model.query_from(states, batch.to(model.device), counted=own)

    def restart(self) -> None:
        """Count evaluations from zero; values that are known stay known."""
        self.evaluations = np.zeros_like(self.evaluations)

    def ends(self) -> tuple[FloatArray, FloatArray]:
        """(N,) values without any player, and (N,) values with all of them."""
        both = self([np.stack([np.zeros(n, bool), np.ones(n, bool)]) for n in self.sizes])
        return np.array([v[0] for v in both]), np.array([v[1] for v in both])
