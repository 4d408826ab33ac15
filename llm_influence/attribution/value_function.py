"""Values of the target for any subset of the players.

Every perturbation method is a choice of masks and a formula over their values. The engine computes
each distinct rendering once, for all targets, methods and users. The cost of a method is the number
of distinct renderings that it needs.
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
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, FloatArray, History, IntArray

ROWS = 256
"""States whose targets are computed at a time; affects memory alone."""

Known = list[dict[bytes, float]]
"""Values of each of N histories by coalition."""


class ValueFunction:
    """Values of one target for subsets of the players of N histories.

    `llm_influence.attribution.renderings` defines the removals. Without any event the model reads
    the prompt alone.

    Args:
        model: The model.
        histories: N histories that fit the context (`Encoder.trim`).
        target: The target, bound to the same histories.
        removal: What "without a player" means.
        players: Who is kept or removed.
        engine: Default: a new one. Share it between targets and methods.
        known: Values shared with another value function, see `view`.

    Attributes:
        evaluations: (N,) coalitions of each history so far, each counted once. The engine may
            compute fewer: renderings of other users, targets and methods are kept.
        bfloat16_error: Largest difference from float32 of a value so far, on renderings computed
            both ways (`Engine`); nan without any.

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
        known: Known | None = None,
    ) -> None:
        self.players = players or Players()
        self.players.check_removal(removal)
        self._model, self._histories, self._target = model, histories, target
        self.removal = removal
        self.engine = engine or Engine(model)
        self._known: Known = [{} for _ in histories] if known is None else known
        self._counted: list[set[bytes]] = [set() for _ in histories]
        self.evaluations: IntArray = np.zeros(len(histories), dtype=np.int64)
        self.bfloat16_error = float("nan")

    def view(self) -> ValueFunction:
        """The same values for another method, whose evaluations are counted from zero.

        A coalition that is already known costs nothing now, but the method alone would have
        evaluated it, so it is counted.
        """
        return ValueFunction(
            self._model,
            self._histories,
            self._target,
            self.removal,
            players=self.players,
            engine=self.engine,
            known=self._known,
        )

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
        rows: list[int] = []
        new: list[BoolArray] = []
        for row, of_row in enumerate(masks):
            distinct = {mask.tobytes(): mask for mask in of_row}
            self.evaluations[row] += len(distinct.keys() - self._counted[row])
            self._counted[row].update(distinct)
            missing = [mask for key, mask in distinct.items() if key not in self._known[row]]
            rows += [row] * len(missing)
            new += missing
        if new:
            self._compute(rows, new)
        return [
            np.array([known[mask.tobytes()] for mask in of_row])
            for known, of_row in zip(self._known, masks, strict=True)
        ]

    def _compute(self, rows: Sequence[int], masks: Sequence[BoolArray]) -> None:
        renderings = render(
            self._model.encoder, self._histories, self.players, rows, masks, self.removal
        )
        states, numbers = self.engine.states(renderings), np.asarray(rows)
        values = self._values(states, renderings, np.arange(len(renderings)), numbers)
        for row, mask, value in zip(rows, masks, values.tolist(), strict=True):
            self._known[row][mask.tobytes()] = value
        sampled, exact = self.engine.exact_states(renderings)
        if sampled:
            places = np.array(sampled)
            exact_values = self._values(exact, renderings, places, numbers[places])
            errors = np.abs(values[places] - exact_values)
            self.bfloat16_error = float(np.nanmax([self.bfloat16_error, *errors]))
            self.engine.note_errors(errors)

    def _values(
        self, states: Tensor, renderings: Renderings, places: IntArray, rows: IntArray
    ) -> FloatArray:
        """(B,) values at (B, H) states of the histories numbered ``rows``.

        Query times and counts are added here, from the renderings numbered ``places`` (B,): states
        do not contain them, so renderings that differ in them alone share a state.
        """
        parts = []
        with inference(self._model):
            for start in range(0, len(states), ROWS):
                part = slice(start, start + ROWS)
                queries = self._queries(states[part], renderings, places[part])
                values = self._target.values(
                    self._model.heads(queries), torch.from_numpy(rows[part])
                )
                parts.append(values.cpu().double())
        return torch.cat(parts).numpy()

    def _queries(self, states: Tensor, read: Renderings, places: IntArray) -> QueryState:
        """(B,) input of the heads, from the (B, H) states of some renderings."""
        model = self._model
        states = states.to(model.device)
        if not model.reads_events:  # no batch is needed
            return model.at_time(QueryState(states), torch.from_numpy(read.encoded.when[places]))
        batch, neutral = read.batch(places)
        own = (neutral == OWN).to(model.device)
        return model.query(batch.to(model.device), states=states, counted=own)

    def restart(self) -> None:
        """Count evaluations from zero; values that are known stay known."""
        self.evaluations = np.zeros_like(self.evaluations)

    def ends(self) -> tuple[FloatArray, FloatArray]:
        """(N,) values without any player, and (N,) values with all of them."""
        both = self([np.stack([np.zeros(n, bool), np.ones(n, bool)]) for n in self.sizes])
        return np.array([v[0] for v in both]), np.array([v[1] for v in both])
