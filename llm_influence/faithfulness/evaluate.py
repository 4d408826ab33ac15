"""Comparison of attribution methods by faithfulness metrics, on one removal and one target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from llm_influence.attribution.methods import METHODS, Method, make_method
from llm_influence.attribution.registry import Attribution, Task, run_method, user_generator
from llm_influence.attribution.renderings import REMOVALS, Removal
from llm_influence.attribution.target import TOP, BoundTarget, Target, bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError, out_of_range, unknown
from llm_influence.faithfulness.games import STEPS, Game, MethodScores, curve, rank_target
from llm_influence.faithfulness.metrics import RANDOMISATION, SENSITIVITY, find_metrics
from llm_influence.faithfulness.result import SCHEMA, FaithfulnessResult
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import FloatArray, History

SPREAD = 0.1
"""Standard deviation of the logarithm of the factor by which a gap is multiplied."""
JITTER = 4
"""Stream of a user's draws of jittered gaps."""


@dataclass(frozen=True, slots=True)
class ComparedMethod:
    """One method of a comparison: its label, how to run it, and its options for the record."""

    label: str
    run: Callable[[Task], Attribution]
    in_target_units: bool = True
    """Whether scores are in the target's units; shares of one are not."""
    baseline: bool = False
    """Whether it is a baseline, which does not use the model."""
    removals: tuple[str, ...] | None = None
    """Removals that it can use; None for a method that removes nothing, or uses any."""
    options: Mapping[str, object] = field(default_factory=dict)


def compared_method(
    method: str | Method, options: Mapping[str, object] | None = None, label: str | None = None
) -> ComparedMethod:
    """A method of the registry for a comparison.

    Args:
        method: Its name, or a method with options such as ``Shapley(evaluations=400)``.
        options: Options of a method that is given by name.
        label: Its name in the comparison; default: the method's own name.

    Raises:
        ExplanationError: There is no such method or option.
    """
    made = make_method(method, options)
    return ComparedMethod(
        label or made.name,
        partial(run_method, made),
        in_target_units=made.units == "target",
        baseline=made.family == "baseline",
        removals=made.removals or None,
        options=dict(options or {}) if isinstance(method, str) else made.options,
    )


def methods_compared(
    methods: Sequence[str | Method | ComparedMethod], removals: Sequence[str]
) -> list[ComparedMethod]:
    """The methods, and after them the baselines of the registry that are not among them."""
    compared = [m if isinstance(m, ComparedMethod) else compared_method(m) for m in methods]
    labels = [method.label for method in compared]
    for label in labels:
        if labels.count(label) > 1:
            found, expected = f"{label!r} stands twice among the methods", "every method once"
            fix = "give one of them another label: compared_method(method, options, label)"
            raise ExplanationError(found, where="faithfulness", expected=expected, fix=fix)
    for method in compared:
        for removal in removals:
            if method.removals is not None and removal not in method.removals:
                found = f"method {method.label!r} cannot use removal {removal!r}"
                expected = f"one of its removals: {', '.join(method.removals)}"
                fix = "choose a removal that all compared methods can use, or leave the method out"
                raise ExplanationError(found, where="faithfulness", expected=expected, fix=fix)
    baselines = [name for name, method in METHODS.items() if method.family == "baseline"]
    return [*compared, *(compared_method(name) for name in baselines if name not in labels)]


@dataclass(frozen=True, slots=True)
class FaithfulnessOptions:
    """Options of a comparison.

    Attributes:
        removal: What "without an event" means, for all methods and metrics: drop, mask or replace.
        check_removal: A second removal with which everything is measured again; None: no second.
        target: What is explained.
        metrics: Names of metrics; None: all that are measured by default.
        last: Number of most recent events to which histories are cut beforehand; None: histories
            stay whole, and all events that fit the context are explained.
        masks: Number of held-out random sets of each history, for LDS and infidelity.
        jitters: Number of draws of jittered gaps, for sensitivity.
        largest_set: Largest number of events in a counterfactual set.
        exact_events: Largest number of events of a history with exact Shapley values.
        seed: Seed of all random draws, those of methods included.

    Raises:
        ExplanationError: A removal or metric is unknown, or a number is too small.
    """

    removal: str = "drop"
    check_removal: str | None = None
    target: Target = TOP
    metrics: tuple[str, ...] | None = None
    last: int | None = None
    masks: int = 64
    jitters: int = 1
    largest_set: int = 10
    exact_events: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        find_metrics(self.metrics)
        for removal in (self.removal, self.check_removal):
            if removal is not None and removal not in REMOVALS:
                raise unknown(ExplanationError, "removal", removal, REMOVALS, where="faithfulness")
        least = {"masks": 3, "jitters": 1, "largest_set": 1, "exact_events": 1, "last": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise out_of_range(ExplanationError, name, value, expected=f"at least {smallest}")

    @property
    def removals(self) -> list[Removal]:
        """The removals in the order in which they are measured."""
        names = dict.fromkeys((self.removal, self.check_removal))
        return [known for name in names for known in REMOVALS if known == name]


def evaluate_faithfulness(
    model: InfluenceModel,
    histories: Sequence[History],
    methods: Sequence[str | Method | ComparedMethod],
    options: FaithfulnessOptions | None = None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> FaithfulnessResult:
    """Measure methods and the baselines of the registry by faithfulness metrics.

    All methods use one removal and one value function, so a set of events that several of them need
    is computed once. Results do not depend on ``batch_size`` beyond rounding.

    Args:
        model: The model; it is in its former mode afterwards.
        histories: Histories whose predictions are explained; intervals are over their users.
        methods: Names of the registry, methods with options, or compared methods.
        options: What is measured; default: `FaithfulnessOptions()`.
        batch_size: Histories at a time; affects speed and memory alone.
        progress: Whether to show a progress bar.

    Raises:
        ExplanationError: An unknown method, metric, removal or target, a method that cannot use
            the removal, or a history without events.
    """
    options = options or FaithfulnessOptions()
    refuse_empty(histories)
    compared = methods_compared(methods, options.removals)
    starts = range(0, len(histories), batch_size)
    tables = [
        measure_batch(model, histories[start : start + batch_size], compared, options, first=start)
        for start in tqdm(starts, unit="batch", desc="faithfulness", disable=not progress)
    ]
    return comparison_result(pa.concat_tables(tables), compared)


def comparison_result(rows: pa.Table, compared: Sequence[ComparedMethod]) -> FaithfulnessResult:
    """The result of a comparison from the rows of all its batches."""
    baselines = [method.label for method in compared if method.baseline]
    return FaithfulnessResult(rows, [method.label for method in compared], baselines)


def refuse_empty(histories: Sequence[History]) -> None:
    """Raise an `ExplanationError` if there is nothing to explain."""
    empty = [history.user_id for history in histories if not len(history)]
    if empty or not len(histories):
        found = f"user {empty[0]!r} has no event" if empty else "there is no history"
        expected, fix = "histories with at least one event each", "leave such users out"
        raise ExplanationError(found, where="faithfulness", expected=expected, fix=fix)


def measure_batch(
    model: InfluenceModel,
    histories: Sequence[History],
    compared: Sequence[ComparedMethod],
    options: FaithfulnessOptions,
    *,
    first: int = 0,
) -> pa.Table:
    """Every metric of N whole histories under every removal, one row each (`result.SCHEMA`).

    ``first`` is the number of the first history.
    """
    rows = []
    if options.last is not None:
        histories = [history.keep(slice(-options.last, None)) for history in histories]
    with _eval_mode(model):
        # Items of events beyond the context count as seen, too.
        target = bind(options.target, model, histories)
        shown = [model.encoder.trim(history) for history in histories]
        for removal in options.removals:
            comparison = _Comparison(model, histories, shown, target, removal, compared, options)
            for method, columns in comparison.measured().items():
                rows += [
                    (first + row, histories[row].user_id, removal, method, metric, float(value))
                    for metric, column in columns.items()
                    for row, value in enumerate(column)
                ]
    return pa.table(list(zip(*rows, strict=True)), schema=SCHEMA)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """N whole histories, their ``shown`` events that fit the context, and the methods compared."""

    model: InfluenceModel
    whole: Sequence[History]
    shown: Sequence[History]
    target: BoundTarget
    removal: Removal
    compared: Sequence[ComparedMethod]
    options: FaithfulnessOptions

    def measured(self) -> dict[str, dict[str, FloatArray]]:
        """(N,) values of every metric, of the points of curves and of evaluations, by method."""
        metrics, options = find_metrics(self.options.metrics), self.options
        names = {metric.name for metric in metrics}
        values = self._value_function(self.shown)
        game = self._game(values)
        attributions = self._run(self.shown, values)
        moved: list[Mapping[str, Attribution]] = []
        if SENSITIVITY in names:
            draws = jittered(self.model, self.shown, options.jitters, options.seed)
            moved = [self._run(draw, self._value_function(draw)) for draw in draws]
        lost: Mapping[str, Attribution] = {}
        if RANDOMISATION in names:
            with scrambled(self.model, options.seed):
                lost = self._run(self.shown, self._value_function(self.shown))
        measured = {}
        for method in self.compared:
            attribution = attributions[method.label]
            scores = MethodScores(
                scores=attribution.scores,
                orders=game.orders(attribution.scores),
                base=attribution.base,
                prompt=attribution.prompt,
                in_target_units=method.in_target_units,
                jittered=[draw[method.label].scores for draw in moved],
                scrambled=lost[method.label].scores if lost else None,
            )
            measured[method.label] = {
                **{metric.name: metric.measure(game, scores) for metric in metrics},
                **_points(game, scores),
                "evaluations": attribution.evaluations.astype(np.float64),
            }
        return measured

    def _game(self, values: ValueFunction) -> Game:
        ranks = rank_target(self.target, self.model, self.whole)
        return Game(
            users=[history.user_id for history in self.shown],
            sizes=[len(history) for history in self.shown],
            values=values,
            ranks=ValueFunction(self.model, self.shown, ranks, self.removal, engine=values.engine),
            log_odds=self.target.has_probability,
            masks=self.options.masks,
            largest_set=self.options.largest_set,
            exact_events=self.options.exact_events,
            seed=self.options.seed,
        )

    def _run(
        self, histories: Sequence[History], values: ValueFunction
    ) -> Mapping[str, Attribution]:
        """Every method on these histories, by label; each counts its own evaluations."""
        seed = self.options.seed
        return {
            method.label: method.run(
                Task(self.model, histories, self.target, self.removal, seed, values=values.view())
            )
            for method in self.compared
        }

    def _value_function(self, histories: Sequence[History]) -> ValueFunction:
        return ValueFunction(self.model, histories, self.target, self.removal)


def _points(game: Game, method: MethodScores) -> dict[str, FloatArray]:
    """(N,) log-odds at every step of the curves, as ``deletion@10`` and so on."""
    return {
        f"{name}@{percent}": column
        for name, keep in (("deletion", False), ("insertion", True))
        for percent, column in zip(STEPS, curve(game, method, keep=keep).T, strict=True)
    }


def jitter_gaps(history: History, draw_number: int, seed: int) -> History:
    """The history with every gap multiplied by ``exp(SPREAD z)``, z normal; gaps of 0 stay 0.

    The last event and the query time keep their times.
    """
    draw = user_generator(seed, history.user_id, JITTER, draw_number)
    gaps = np.diff(history.timestamps).astype(np.float64)
    moved = np.rint(gaps * np.exp(SPREAD * draw.standard_normal(len(gaps)))).astype(np.int64)
    back = np.concatenate([np.cumsum(moved[::-1])[::-1], [0]]) if len(history) else moved
    return replace(history, timestamps=history.timestamps[-1:] - back)


def jittered(
    model: InfluenceModel, histories: Sequence[History], draws: int, seed: int
) -> list[list[History]]:
    """``draws`` jitters of every history; none for templates without gaps.

    Templates with the hour or the weekday have none either: a jitter would change these words, and
    the history would no longer be nearly the same.
    """
    fields = model.encoder.template.fields
    if "gap" not in fields or fields & {"hour", "weekday"}:
        return []
    return [[jitter_gaps(history, n, seed) for history in histories] for n in range(draws)]


@contextmanager
def scrambled(model: InfluenceModel, seed: int = 0) -> Iterator[None]:
    """Shuffle the numbers of every weight tensor; the weights are restored afterwards.

    This is the model parameter randomisation test (Adebayo et al. 2018, arXiv:1810.03292) for any
    architecture: sizes stay plausible, and all that was learned is gone. Vectors of item texts are
    input, not weights, and stay. The same seed scrambles alike.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = list(model.parameters())
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


@contextmanager
def _eval_mode(model: InfluenceModel) -> Iterator[None]:
    """Eval mode with gradients; the former mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
