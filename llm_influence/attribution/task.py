"""What a method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.players import EVENTS, Players
from llm_influence.attribution.renderings import Removal
from llm_influence.attribution.targets import BoundTarget
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.types import BoolArray, FloatArray, History, IntArray


@dataclass(frozen=True, eq=False)
class Task:
    """A batch of N histories to be explained, in eval mode.

    Attributes:
        model: The model.
        histories: N histories that fit the context.
        target: What is explained.
        removal: What "without an event" means, for methods that remove events.
        players: Who gets a score.
        reader: The engine, where other tasks on the same model share it; default: a new one.
        seed: Seed of random draws; a method mixes it with the user id, never with batch places.
    """

    model: InfluenceModel
    histories: Sequence[History]
    target: BoundTarget
    removal: Removal
    seed: int
    players: Players = EVENTS
    reader: Engine | None = None

    @cached_property
    def batch(self) -> EncodedBatch:
        """The histories rendered, on the model's device."""
        encoded = self.model.encoder.encode(self.histories)
        return collate(encoded).to(self.model.device)

    @cached_property
    def values(self) -> ValueFunction:
        """Values of subsets of the players."""
        return ValueFunction(
            self.model,
            self.histories,
            self.target,
            self.removal,
            players=self.players,
            engine=self.engine,
        )

    @cached_property
    def engine(self) -> Engine:
        """What reads; tasks of other targets and methods over the same histories share it."""
        return self.reader or Engine(self.model)

    @property
    def sizes(self) -> list[int]:
        """Players of each history."""
        return self.values.sizes

    def for_target(self, target: BoundTarget) -> Task:
        """The same histories with another target; what does not depend on it is shared."""
        task = replace(self, target=target, reader=self.engine)
        task.__dict__["batch"] = self.batch
        return task

    def split(self, padded: FloatArray) -> list[FloatArray]:
        """(N, E) padded scores as N arrays without padding."""
        return [row[:size] for row, size in zip(padded, self.sizes, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Scores of N histories.

    Attributes:
        scores: N arrays (E,), one score an event.
        frame: (N,) score of what stands outside every event.
        base: (N,) the target at the method's baseline.
        full: (N,) the target with all events.
        passes: (N,) forward passes spent; a backward pass counts as one more.
        standard_errors: N arrays (E,), for methods that sample; else None.
        converged: (N,) whether an iterative method reached its tolerance; None for all others.
    """

    scores: list[FloatArray]
    frame: FloatArray
    base: FloatArray
    full: FloatArray
    passes: IntArray
    standard_errors: list[FloatArray] | None = None
    converged: BoolArray | None = None

    def completeness_gaps(self) -> FloatArray:
        """(N,) ``|sum of scores - (full - base)| / |full - base|``; nan where full equals base."""
        moved = self.full - self.base
        total = np.array([row.sum() for row in self.scores]) + self.frame
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(moved == 0, np.nan, np.abs(total - moved) / np.abs(moved))
