"""What a method is given, and what it gives back.

Random draws: from the seed and the user, never from a history's place in a batch.

Every attribution method with its capabilities as data.

The command line's help, the documentation's table and the errors are made from these records, and
the contract tests run every one of them. A new method is one function under `register`.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from llm_influence.attribution.engine import PRECISIONS, Engine, Precision
from llm_influence.attribution.renderings import EVENTS, Players, Removal
from llm_influence.attribution.target import BoundTarget
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError, choices
from llm_influence.modeling.backbone import Backbone
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
        prompt: (N,) score of what stands outside every event.
        base: (N,) the target at the method's baseline.
        full: (N,) the target with all events.
        evaluations: (N,) model evaluations spent; a backward pass counts as one more.
        standard_errors: N arrays (E,), for methods that sample; else None.
        converged: (N,) whether an iterative method reached its tolerance; None for all others.
    """

    scores: list[FloatArray]
    prompt: FloatArray
    base: FloatArray
    full: FloatArray
    evaluations: IntArray
    standard_errors: list[FloatArray] | None = None
    converged: BoolArray | None = None

    def completeness_gaps(self) -> FloatArray:
        """(N,) ``|sum of scores - (full - base)| / |full - base|``; nan where full equals base."""
        moved = self.full - self.base
        total = np.array([row.sum() for row in self.scores]) + self.prompt
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(moved == 0, np.nan, np.abs(total - moved) / np.abs(moved))


def user_generator(seed: int, user_id: str, *stream: int) -> np.random.Generator:
    """The draws of one user; a ``stream`` keeps them apart from others of the same seed."""
    return np.random.default_rng([seed, zlib.crc32(user_id.encode()), *stream])


def generator(task: Task, row: int) -> np.random.Generator:
    """The draws of one history of a task."""
    return user_generator(task.seed, task.histories[row].user_id)


def generators(task: Task) -> list[np.random.Generator]:
    """The draws of every history of a task."""
    return [generator(task, row) for row in range(len(task.histories))]


Method = Callable[..., Attribution]

EVERY_PLAYER = ("events", "events+user", "fields", "fields+user")
"""All players there are, as `Players` writes them."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method and what there is to know about it.

    Attributes:
        name: Its name everywhere.
        run: ``(task, **options) -> Attribution``.
        family: ``attention``, ``gradient``, ``perturbation`` or ``reference``.
        units: ``target``: scores are in the target's units (log-odds); ``share``: shares of one.
        removals: Removals it can use, the default first; empty when it removes nothing.
        cost: Passes a history of E events takes.
        estimates: What a score is.
        equation: The same as a formula, plain text; f is the target, S a set of events.
        paper: Where it comes from.
        caution: When not to trust it.
        gradients: It follows the target's gradient, so it needs a target that has one.
        players: Who may get a score, as `Players` writes it; always whole events.
        to_zero: Options with which it follows input vectors to zero: {} whatever the options are,
            None never. A backbone that normalises its inputs first cannot feel that, and is
            refused.
    """

    name: str
    run: Method
    family: Literal["attention", "gradient", "perturbation", "reference"]
    units: Literal["target", "share"]
    removals: tuple[Removal, ...]
    cost: str
    estimates: str
    equation: str
    paper: str
    caution: str
    gradients: bool
    players: tuple[str, ...]
    to_zero: Mapping[str, object] | None

    @property
    def attention(self) -> bool:
        """Whether it reads attention weights, so that it needs a backbone that attends."""
        return self.family == "attention"

    @property
    def options(self) -> Mapping[str, object]:
        """The method's own options with their defaults."""
        parameters = list(inspect.signature(self.run).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def serves(self, backbone: Backbone, options: Mapping[str, object]) -> bool:
        """Whether the method can explain this backbone with these of its options."""
        if self.attention and not backbone.attends:
            return False
        if self.to_zero is None or not backbone.loses_length:
            return True
        given = {**self.options, **options}
        return any(given[name] != value for name, value in self.to_zero.items())


METHODS: dict[str, MethodSpec] = {}


def register(
    *,
    name: str,
    family: Literal["attention", "gradient", "perturbation", "reference"],
    units: Literal["target", "share"],
    removals: tuple[Removal, ...],
    cost: str,
    estimates: str,
    equation: str,
    paper: str,
    caution: str,
    gradients: bool | None = None,
    players: tuple[str, ...] | None = None,
    to_zero: Mapping[str, object] | None = None,
) -> Callable[[Method], Method]:
    """Make a function a method; the arguments are those of `MethodSpec`.

    ``gradients`` need not be given: the family ``gradient`` follows them, others do not. Nor need
    ``players``: what can replace an event can replace a part of it, what cannot explains events.
    """
    able = players or (EVERY_PLAYER if "replace" in removals else EVERY_PLAYER[:1])
    follows = family == "gradient" if gradients is None else gradients

    def add(run: Method) -> Method:
        METHODS[name] = MethodSpec(
            name=name,
            run=run,
            family=family,
            units=units,
            removals=removals,
            cost=cost,
            estimates=estimates,
            equation=equation,
            paper=paper,
            caution=caution,
            gradients=follows,
            players=able,
            to_zero=to_zero,
        )
        return run

    return add


def check_target(spec: MethodSpec, target: BoundTarget) -> None:
    """Refuse a target that the method cannot explain.

    Raises:
        ExplanationError: The method follows gradients and the target has none.
    """
    if spec.gradients and not target.differentiable:
        able = [name for name, each in METHODS.items() if not each.gradients]
        raise ExplanationError(
            f"a {target.kind} has no gradient",
            where=f"method {spec.name!r}",
            expected="a target that changes smoothly: an item, a behaviour, a contrast or feedback",
            fix=f"explain one of these, or choose a method without gradients: {', '.join(able)}",
        )


def check_model(spec: MethodSpec, model: InfluenceModel, options: Mapping[str, object]) -> None:
    """Refuse a model that the method cannot explain with these of its options.

    Raises:
        ExplanationError: The method reads attention weights and the backbone has none, or it
            follows input vectors to zero and the backbone does not feel their length.
    """
    backbone = model.backbone
    if spec.serves(backbone, options):
        return
    if spec.attention:
        able = [name for name, each in METHODS.items() if not each.attention]
        raise ExplanationError(
            f"backbone {backbone.source!r} does not attend to events: it carries a state",
            where=f"method {spec.name!r}",
            expected="a transformer, whose attention weights are read",
            fix=f"choose a method that reads none: {', '.join(able)}",
        )
    raise ExplanationError(
        f"{backbone.model.config.model_type} normalises its input vectors first",
        where=f"method {spec.name!r}, which follows them to zero",
        expected="a backbone that feels the length of an input vector",
        fix="use integrated_gradients with baseline 'mean', or a perturbation method",
    )


def run_method(spec: MethodSpec, task: Task, options: Mapping[str, object]) -> Attribution:
    """The method's answer, once it is known to be one for the task's model.

    Raises:
        ExplanationError: See `check_model`, and the method.
    """
    check_model(spec, task.model, options)
    return spec.run(task, **options)


def check_players(spec: MethodSpec, players: Players) -> None:
    """Refuse players to whom the method can give no scores.

    Raises:
        ExplanationError: It cannot take events apart, or the prompt.
    """
    if str(players) not in spec.players:
        able = [name for name, each in METHODS.items() if str(players) in each.players]
        raise ExplanationError(
            f"{spec.name} gives no scores to {str(players)!r}",
            where="players",
            expected=f"{choices(spec.players)}, or another method: {', '.join(able)}",
            fix="explain what the method can, or choose one of these methods",
        )


def check_precision(spec: MethodSpec, dtype: str) -> Precision:
    """The precision, once it is known to be one in which the method can read.

    Raises:
        ExplanationError: Not float32, and it is not the engine that reads for the method.
    """
    for precision in PRECISIONS:
        if dtype == precision and (spec.removals or precision == "float32"):
            return precision
    if dtype not in PRECISIONS:
        raise ExplanationError(
            f"dtype {dtype!r}",
            where="dtype",
            expected=choices(PRECISIONS, dtype),
            fix="choose one of them",
        )
    able = [name for name, each in METHODS.items() if each.removals]
    raise ExplanationError(
        f"{spec.name} does not read in {dtype}",
        where="dtype",
        expected=f"float32, or a method that removes events: {', '.join(able)}",
        fix="leave dtype at float32, or choose one of these methods",
    )


def check_options(spec: MethodSpec, removal: str | None, options: Mapping[str, object]) -> Removal:
    """The removal to use, once it and all options are known to be the method's own.

    Raises:
        ExplanationError: The method has no such option or removal.
    """
    for option in options:
        if option not in spec.options:
            known = choices(spec.options, option) if spec.options else "no options"
            raise ExplanationError(
                f"unknown option {option!r}",
                where=f"method {spec.name!r}",
                expected=known,
                fix="correct or leave out the option",
            )
    if removal is None:
        return spec.removals[0] if spec.removals else "drop"
    if removal not in spec.removals:
        raise ExplanationError(
            f"removal {removal!r}",
            where=f"method {spec.name!r}",
            expected=choices(spec.removals, removal)
            if spec.removals
            else "none: it removes nothing",
            fix="correct or leave out the removal",
        )
    return removal
