"""A history with its target, and our own side of the measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.attribution.masked_function import Floats, MaskedFunction
from llm_influence.attribution.engine import Engine, Precision
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.registry import Attribution, Task
from llm_influence.attribution.target import TOP, BoundTarget, bind
from llm_influence.data.splits import EvaluationSet
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History

REMOVAL = "drop"


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """What one system made of one history: (E,) scores, its evaluations and its seconds."""

    scores: Floats
    evaluations: int
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A model, one history of a user, and its first recommendation as the target."""

    model: InfluenceModel
    history: History
    target: BoundTarget

    @property
    def key(self) -> str:
        """Names the case where measurements are kept."""
        return f"user {self.history.user_id}, {len(self.history)} events"

    def function(self, token_budget: int) -> MaskedFunction:
        """The function that peers explain."""
        return MaskedFunction(self.model, self.history, self.target, token_budget)

    def ours(
        self, method: str, *, seed: int = 0, dtype: Precision = "float32", **options: object
    ) -> tuple[Explained, Attribution]:
        """Explain with a method of the registry, from a task that has computed nothing yet."""
        engine = Engine(self.model, dtype=dtype)
        task = Task(self.model, [self.history], self.target, REMOVAL, seed, engine=engine)
        begun = time.perf_counter()
        found = METHODS[method](**options).run(task)
        seconds = time.perf_counter() - begun
        return Explained(found.scores[0], int(found.evaluations[0]), seconds), found


def choose_cases(
    model: InfluenceModel, examples: EvaluationSet, events: int, count: int, seed: int
) -> list[Case]:
    """The last ``events`` events before the tested one, of ``count`` users drawn from all.

    Raises:
        SystemExit: Too few users have so many events, or the model reads fewer.
    """
    if model.encoder.max_events < events:
        raise SystemExit(f"the model reads {model.encoder.max_events} events, not {events}")
    enough = np.flatnonzero(examples.positions >= events)
    if len(enough) < count:
        raise SystemExit(f"{len(enough)} users have {events} events, {count} are wanted")
    chosen = np.random.default_rng(seed).permutation(enough)[:count]
    return [_case(model, examples.history(int(row)), events) for row in chosen]


def _case(model: InfluenceModel, whole: History, events: int) -> Case:
    history = whole.keep(np.arange(len(whole)) >= len(whole) - events)
    return Case(model, history, bind(TOP, model, [history]))


def options_of(method: str) -> set[str]:
    """Names of a method's own options.

    Raises:
        SystemExit: The registry has no such method.
    """
    if method not in METHODS:
        raise SystemExit(f"the registry has no method {method!r}")
    return set(METHODS[method].defaults())
