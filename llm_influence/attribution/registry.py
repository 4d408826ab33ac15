"""The registry of attribution methods, what a method is given and what it returns.

A method is a frozen dataclass: its fields are its options, its class attributes say what it can do,
and `Method.run` explains a `Task`. The command line, the documentation and the error messages read
the same attributes. A new method is one class under `register`.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import ClassVar, Literal, Protocol, TypeVar

import numpy as np

from llm_influence.attribution.engine import PRECISIONS, Engine, Precision
from llm_influence.attribution.renderings import EVENTS, Players, Removal
from llm_influence.attribution.target import BoundTarget
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError, choices, unknown
from llm_influence.modeling.backbone import Backbone
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.types import BoolArray, FloatArray, History, IntArray

Family = Literal["attention", "gradient", "perturbation", "baseline"]
Units = Literal["target", "share"]


class CoalitionValues(Protocol):
    """Values of coalitions of N games; `ValueFunction` computes them with a model."""

    evaluations: IntArray
    """(N,) distinct coalitions evaluated so far."""

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """N arrays (M,) of values of N arrays (M, n) of coalitions."""

    def ends(self) -> tuple[FloatArray, FloatArray]:
        """(N,) values without any player, and (N,) values with all of them."""


class Games(Protocol):
    """N games over players: the part of a task that perturbation methods use."""

    @property
    def sizes(self) -> Sequence[int]:
        """Players of each game."""

    @property
    def values(self) -> CoalitionValues:
        """Values of the coalitions."""

    def generators(self) -> list[np.random.Generator]:
        """A seeded random generator of each game."""

    def label(self, row: int) -> str:
        """Name of a game in messages."""


class Task:
    """N histories to be explained by a model in eval mode.

    Args:
        model: The model.
        histories: N histories that fit the context.
        target: What is explained.
        removal: What "without an event" means, for methods that remove events.
        seed: Seed of random draws; a method mixes it with the user id, never with batch places.
        players: Who gets a score.
        engine: Default: a new one. Tasks on the same model can share it.
        values: Default: a new value function on ``engine``.
        make_batch: Makes `batch`; default: renders the histories once, when first needed.
    """

    def __init__(
        self,
        model: InfluenceModel,
        histories: Sequence[History],
        target: BoundTarget,
        removal: Removal,
        seed: int,
        players: Players = EVENTS,
        *,
        engine: Engine | None = None,
        values: ValueFunction | None = None,
        make_batch: Callable[[], EncodedBatch] | None = None,
    ) -> None:
        self.model, self.histories, self.target = model, histories, target
        self.removal, self.seed, self.players = removal, seed, players
        self.values = values or ValueFunction(
            model, histories, target, removal, players=players, engine=engine
        )
        self.engine = self.values.engine
        self._make_batch = make_batch or cache(partial(_rendered, model, histories))

    @property
    def batch(self) -> EncodedBatch:
        """The histories rendered, on the model's device."""
        return self._make_batch()

    @property
    def sizes(self) -> list[int]:
        """Players of each history."""
        return self.values.sizes

    def like(self, target: BoundTarget | None = None, removal: Removal | None = None) -> Task:
        """The same histories with another target or removal; renderings and states are shared."""
        return Task(
            self.model,
            self.histories,
            target or self.target,
            removal or self.removal,
            self.seed,
            self.players,
            engine=self.engine,
            make_batch=self._make_batch,
        )

    def generators(self) -> list[np.random.Generator]:
        """A seeded random generator of each history; it does not depend on the batch."""
        return [user_generator(self.seed, history.user_id) for history in self.histories]

    def label(self, row: int) -> str:
        """The user of a history, for messages."""
        return f"user {self.histories[row].user_id!r}"

    def split(self, padded: FloatArray) -> list[FloatArray]:
        """(N, E) padded scores as N arrays without padding."""
        return [row[:size] for row, size in zip(padded, self.sizes, strict=True)]


def _rendered(model: InfluenceModel, histories: Sequence[History]) -> EncodedBatch:
    return collate(model.encoder.encode(histories)).to(model.device)


def user_generator(seed: int, user_id: str, *stream: int) -> np.random.Generator:
    """The random generator of one user; a ``stream`` separates draws of the same seed."""
    return np.random.default_rng([seed, zlib.crc32(user_id.encode()), *stream])


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Scores of N histories.

    Attributes:
        scores: N arrays (E,), one score an event.
        prompt: (N,) score of what stands outside every event.
        base: (N,) the target at the method's baseline.
        full: (N,) the target with all events.
        evaluations: (N,) model evaluations spent; a backward pass counts as one more.
        standard_errors: N arrays (E,), for methods that sample; else None.
        converged: (N,) whether an iterative method reached its tolerance; None for all others.
        blocks: N tuples of places of the events that were scored together, for methods that group
            events; else None.
    """

    scores: list[FloatArray]
    prompt: FloatArray
    base: FloatArray
    full: FloatArray
    evaluations: IntArray
    standard_errors: list[FloatArray] | None = None
    converged: BoolArray | None = None
    blocks: list[tuple[int, ...]] | None = None

    def completeness_gaps(self) -> FloatArray:
        """(N,) ``|sum of scores - (full - base)| / |full - base|``; nan where full equals base."""
        moved = self.full - self.base
        total = np.array([row.sum() for row in self.scores]) + self.prompt
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(moved == 0, np.nan, np.abs(total - moved) / np.abs(moved))


def removal_attribution(
    games: Games,
    scores: list[FloatArray],
    standard_errors: list[FloatArray] | None = None,
    converged: BoolArray | None = None,
) -> Attribution:
    """The attribution of a perturbation method, with the values of no player and of all players."""
    base, full = games.values.ends()
    evaluations = games.values.evaluations.copy()
    prompt = np.zeros(len(scores))
    return Attribution(scores, prompt, base, full, evaluations, standard_errors, converged)


def share_attribution(
    task: Task, amounts: list[FloatArray], prompt: FloatArray, evaluations: int | IntArray = 0
) -> Attribution:
    """The attribution of amounts that are never negative, divided by their total.

    A history whose amounts are all 0 gets scores of 0.

    Args:
        task: What is explained.
        amounts: N arrays (E,).
        prompt: (N,) amounts of the prompts.
        evaluations: Model evaluations spent on a history; the completeness gap takes two more.
    """
    totals = np.array([row.sum() for row in amounts]) + prompt
    totals[totals == 0] = 1.0
    base, full = task.values.ends()
    return Attribution(
        scores=[row / total for row, total in zip(amounts, totals, strict=True)],
        prompt=prompt / totals,
        base=base,
        full=full,
        evaluations=task.values.evaluations + np.int64(evaluations),
    )


class Method(ABC):
    """An attribution method with its options, such as ``Shapley(evaluations=400)``.

    Attributes:
        name: Its name everywhere.
        family: ``attention``, ``gradient``, ``perturbation`` or ``baseline``.
        units: ``target``: scores are in the target's units (log-odds); ``share``: shares of one.
        removals: Removals it can use, the default first; empty if it removes nothing.
        cost: Model evaluations for a history of E events.
        estimates: What a score is.
        equation: The same as a formula, plain text; f is the target, S a set of events.
        paper: Where it comes from.
        caution: When not to trust it.
        gradients: Whether it uses the target's gradient, so that the target needs one.
        players: Who may get a score, as `Players` writes it; always whole events.
        to_zero: Options with which it moves input vectors to zero: {} for all options, None for
            none. A backbone that normalises its inputs first is then refused.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    units: ClassVar[Units]
    removals: ClassVar[tuple[Removal, ...]] = ()
    cost: ClassVar[str]
    estimates: ClassVar[str]
    equation: ClassVar[str]
    paper: ClassVar[str] = ""
    caution: ClassVar[str]
    gradients: ClassVar[bool] = False
    players: ClassVar[tuple[str, ...]] = ("events",)
    to_zero: ClassVar[Mapping[str, object] | None] = None

    @abstractmethod
    def run(self, task: Task) -> Attribution:
        """Explain the histories of a task.

        Raises:
            ExplanationError: The method cannot explain one of the histories.
        """

    @classmethod
    def defaults(cls) -> dict[str, object]:
        """The method's options with their defaults."""
        return {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]

    @property
    def options(self) -> dict[str, object]:
        """The options with their values."""
        return {name: getattr(self, name) for name in self.defaults()}

    def serves(self, backbone: Backbone) -> bool:
        """Whether the method, with these options, can explain this backbone."""
        if self.family == "attention" and not backbone.attends:
            return False
        if self.to_zero is None or not backbone.loses_length:
            return True
        return any(getattr(self, name) != value for name, value in self.to_zero.items())

    def option_error(self, option: str, expected: str) -> ExplanationError:
        """The error for an option whose value is not allowed."""
        return ExplanationError(
            f"{option} is {getattr(self, option)!r}",
            where=f"method {self.name!r}",
            expected=expected,
            fix=f"set {option} to {expected}, or leave it out for the default",
        )


class Perturbation(Method):
    """A method that removes players; it explains any games, not models alone."""

    family = "perturbation"
    units = "target"
    removals = ("drop", "mask", "replace")
    players: ClassVar[tuple[str, ...]] = ("events", "events+user", "fields", "fields+user")

    @abstractmethod
    def run(self, task: Games) -> Attribution:
        """Explain N games; see `Method.run`."""


METHODS: dict[str, type[Method]] = {}
"""All methods by name, in the order of the documentation."""

Registered = TypeVar("Registered", bound=type[Method])


def register(method: Registered) -> Registered:
    """Add a method to the registry; a class decorator."""
    METHODS[method.name] = method
    return method


def _names(able: Callable[[type[Method]], bool]) -> str:
    """The methods of which something is true, for a message."""
    return ", ".join(name for name, method in METHODS.items() if able(method))


def make(method: type[Method], options: Mapping[str, object]) -> Method:
    """A method with options given by name."""
    known = method.defaults()
    for option in options:
        if option not in known:
            where = f"method {method.name!r}"
            raise unknown(
                ExplanationError, "option", option, known, where=where, fix="correct or drop it"
            )
    return method(**options)


def run_method(method: Method, task: Task) -> Attribution:
    """Explain a task, after the check that the method can explain its model."""
    check_model(method, task.model)
    return method.run(task)


def check_target(method: Method, target: BoundTarget) -> None:
    """Refuse a target that the method cannot explain."""
    if method.gradients and not target.differentiable:
        raise ExplanationError(
            f"a {target.kind} has no gradient",
            where=f"method {method.name!r}",
            expected="a smooth target: an item, a behaviour, a contrast or feedback",
            fix=f"explain one of these, or use one of {_names(lambda m: not m.gradients)}",
        )


def check_model(method: Method, model: InfluenceModel) -> None:
    """Refuse a model that the method, with these options, cannot explain.

    Raises:
        ExplanationError: The method reads attention weights and the backbone has none, or it moves
            input vectors to zero and the backbone normalises them first.
    """
    backbone = model.backbone
    if method.serves(backbone):
        return
    if method.family == "attention":
        raise ExplanationError(
            f"backbone {backbone.source!r} does not attend to events: it carries a state",
            where=f"method {method.name!r}",
            expected="a transformer, which has attention weights",
            fix=f"use one of {_names(lambda m: m.family != 'attention')}",
        )
    raise ExplanationError(
        f"{backbone.model.config.model_type} normalises its input vectors first",
        where=f"method {method.name!r}, which moves them to zero",
        expected="a backbone that reacts to the length of an input vector",
        fix="use integrated_gradients with baseline 'mean', or a perturbation method",
    )


def check_players(method: Method, players: Players) -> None:
    """Refuse players to whom the method can give no scores."""
    wanted = str(players)
    if wanted not in method.players:
        raise ExplanationError(
            f"{method.name} gives no scores to {wanted!r}",
            where="players",
            expected=choices(method.players),
            fix=f"change players, or use one of {_names(lambda m: wanted in m.players)}",
        )


def check_precision(method: Method, dtype: str) -> Precision:
    """The precision, if the method can compute in it."""
    for precision in PRECISIONS:
        if dtype == precision and (method.removals or precision == "float32"):
            return precision
    if dtype not in PRECISIONS:
        raise unknown(ExplanationError, "dtype", dtype, PRECISIONS, where="dtype")
    raise ExplanationError(
        f"{method.name} does not compute in {dtype}",
        where="dtype",
        expected="float32, or a method that removes events",
        fix=f"leave dtype at float32, or use one of {_names(lambda m: bool(m.removals))}",
    )


def check_removal(method: Method, removal: str | None) -> Removal:
    """The removal to use; None: the method's default."""
    if removal is None:
        return method.removals[0] if method.removals else "drop"
    for known in method.removals:
        if removal == known:
            return known
    where, fix = f"method {method.name!r}", "correct or leave out the removal"
    raise unknown(ExplanationError, "removal", removal, method.removals, where=where, fix=fix)
