"""One value function for all methods that are compared, evaluations counted for each of them alone.

Histories whose gaps are a little off: the same events in the same order.

The model parameter randomisation test: scores that read the model must change with its weights.

Adebayo et al. 2018, arXiv:1810.03292. Every tensor of weights keeps its numbers and loses their
order, so sizes stay plausible for any architecture while all that was learned is gone.

All methods of a batch of histories on one value function, and all metrics of their scores.

evaluate_faithfulness: every metric of every method for every user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.registry import Attribution, Task, user_generator
from llm_influence.attribution.renderings import Removal
from llm_influence.attribution.target import BoundTarget, bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.games import STEPS, Game, Scored, rank_target
from llm_influence.faithfulness.metrics import (
    RANDOMISATION,
    SENSITIVITY,
    deletion_values,
    insertion_values,
)
from llm_influence.faithfulness.options import ComparedMethod, Options, methods_compared
from llm_influence.faithfulness.result import SCHEMA, FaithfulnessResult
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, FloatArray, History


class View(ValueFunction):
    """A value function seen by one method: known values are shared, evaluations are the method's own.

    A set that another method has asked for before costs no pass of the model, yet it would have
    cost one alone, and that is what ``evaluations`` says.
    """

    def __init__(self, shared: ValueFunction) -> None:
        self.__dict__.update(shared.__dict__)
        self._shared = shared
        self._asked: list[set[bytes]] = [set() for _ in shared.evaluations]
        self.evaluations = np.zeros_like(shared.evaluations)

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """Values of masks; see `ValueFunction`."""
        for row, asked in enumerate(self._asked):
            asked.update(mask.tobytes() for mask in masks[row])
            self.evaluations[row] = len(asked)
        return self._shared(masks)


@dataclass(frozen=True, eq=False)
class SharedTask(Task):
    """A task whose value function is shared with other tasks on the same histories.

    Attributes:
        shared: The value function of all of them.
    """

    shared: ValueFunction = field(kw_only=True)

    @cached_property
    def values(self) -> ValueFunction:
        """This task's view of the shared value function."""
        return View(self.shared)


SPREAD = 0.1
"""Standard deviation of the logarithm of the factor that a gap is multiplied with."""
STREAM = 4
"""Keeps these draws apart from others of the same seed and user."""


def jitter_gaps(history: History, draw_number: int, seed: int) -> History:
    """The history with every gap multiplied by ``exp(SPREAD z)``, z normal; gaps of 0 stay 0.

    The last event keeps its time: the past moves, not the present, nor the moment of the question.
    """
    draw = user_generator(seed, history.user_id, STREAM, draw_number)
    gaps = np.diff(history.timestamps).astype(np.float64)
    moved = np.rint(gaps * np.exp(SPREAD * draw.standard_normal(len(gaps)))).astype(np.int64)
    back = np.concatenate([np.cumsum(moved[::-1])[::-1], [0]]) if len(history) else moved
    return replace(history, timestamps=history.timestamps[-1:] - back)


def jittered(
    model: InfluenceModel, histories: Sequence[History], draws: int, seed: int
) -> list[list[History]]:
    """``draws`` jitters of every history; none for a template that reads no gap.

    None either for one that reads the hour or the weekday: a gap that is a little off would move an
    event to another hour, and that is not the same history any more.
    """
    said = model.encoder.template.fields
    if "gap" not in said or said & {"hour", "weekday"}:
        return []
    return [[jitter_gaps(history, n, seed) for history in histories] for n in range(draws)]


@contextmanager
def scrambled(model: InfluenceModel, seed: int = 0) -> Iterator[None]:
    """Shuffle the numbers of every weight tensor; the weights come back afterwards.

    Texts of items are input, not weights, and stay. Two calls with one seed scramble alike.
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


CURVES = {"deletion": deletion_values, "insertion": insertion_values}
"""Curves whose points stand beside the metrics, as ``deletion@10`` and so on."""


def measure_batch(
    model: InfluenceModel,
    histories: Sequence[History],
    compared: Sequence[ComparedMethod],
    options: Options,
    *,
    first: int = 0,
) -> pa.Table:
    """Every metric of N histories under every removal, a row each (`result.SCHEMA`).

    Args:
        model: The model.
        histories: N whole histories.
        compared: What is compared.
        options: What is measured.
        first: Number of the first history.
    """
    rows = []
    if options.last is not None:
        histories = [history.keep(slice(-options.last, None)) for history in histories]
    with _eval_mode(model):
        target = bind(options.target, model, histories)  # items left out of context are seen too
        shown = [model.encoder.trim(history) for history in histories]
        for removal in options.removals:
            bench = _Bench(model, histories, shown, target, removal, compared, options)
            for method, columns in bench.measured().items():
                for metric, column in columns.items():
                    rows += [
                        {
                            "history": first + row,
                            "user_id": histories[row].user_id,
                            "removal": removal,
                            "method": method,
                            "metric": metric,
                            "value": float(value),
                        }
                        for row, value in enumerate(column)
                    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@dataclass(frozen=True, eq=False)
class _Bench:
    """N histories under one removal, and what is compared on them.

    Attributes:
        whole: The histories as they are.
        shown: The same as far as they are explained.
    """

    model: InfluenceModel
    whole: Sequence[History]
    shown: Sequence[History]
    target: BoundTarget
    removal: Removal
    compared: Sequence[ComparedMethod]
    options: Options

    def measured(self) -> dict[str, dict[str, FloatArray]]:
        """(N,) values of every metric, and of points of curves and evaluations, by method."""
        metrics = self.options.measured
        wanted = {metric.name for metric in metrics}
        values = self._value_function(self.shown, self.target)
        game = self._game(values)
        found = self._run(self.shown, values)
        moved = self._jittered() if SENSITIVITY in wanted else []
        lost = self._scrambled() if RANDOMISATION in wanted else {}
        measured = {}
        for each in self.compared:
            attribution = found[each.label]
            scored = Scored(
                scores=attribution.scores,
                orders=game.orders(attribution.scores),
                base=attribution.base,
                prompt=attribution.prompt,
                in_target_units=each.in_target_units,
                jittered=[draw[each.label].scores for draw in moved],
                scrambled=lost[each.label].scores if lost else None,
            )
            measured[each.label] = {
                **{metric.name: metric.measure(game, scored) for metric in metrics},
                **_points(game, scored),
                "evaluations": attribution.evaluations.astype(np.float64),
            }
        return measured

    def _game(self, values: ValueFunction) -> Game:
        ranks = rank_target(self.target, self.model, self.whole)
        return Game(
            users=[history.user_id for history in self.shown],
            sizes=[len(history) for history in self.shown],
            values=values,
            ranks=self._value_function(self.shown, ranks, values.engine),
            log_odds=self.target.has_probability,
            masks=self.options.masks,
            largest_set=self.options.largest_set,
            exact_events=self.options.exact_events,
            seed=self.options.seed,
        )

    def _jittered(self) -> list[Mapping[str, Attribution]]:
        """Every method on histories with jittered gaps, once a draw; the target stays."""
        draws = jittered(self.model, self.shown, self.options.jitters, self.options.seed)
        return [self._run(draw, self._value_function(draw, self.target)) for draw in draws]

    def _scrambled(self) -> Mapping[str, Attribution]:
        """Every method on the model with scrambled weights; the target stays."""
        with scrambled(self.model, self.options.seed):
            return self._run(self.shown, self._value_function(self.shown, self.target))

    def _run(
        self, histories: Sequence[History], values: ValueFunction
    ) -> Mapping[str, Attribution]:
        """Every method on these histories, by label."""
        found = {}
        for each in self.compared:
            task = SharedTask(
                self.model, histories, self.target, self.removal, self.options.seed, shared=values
            )
            found[each.label] = each.run(task)
        return found

    def _value_function(
        self, histories: Sequence[History], target: BoundTarget, engine: Engine | None = None
    ) -> ValueFunction:
        return ValueFunction(self.model, histories, target, self.removal, engine=engine)


def _points(game: Game, scored: Scored) -> dict[str, FloatArray]:
    """(N,) log-odds at every step of the curves."""
    return {
        f"{name}@{percent}": column
        for name, curve in CURVES.items()
        for percent, column in zip(STEPS, curve(game, scored).T, strict=True)
    }


@contextmanager
def _eval_mode(model: InfluenceModel) -> Iterator[None]:
    """Eval mode with gradients; the mode the model was in comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluate_faithfulness(
    model: InfluenceModel,
    histories: Sequence[History],
    methods: Sequence[str | ComparedMethod],
    options: Options | None = None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> FaithfulnessResult:
    """Measure methods beside each other and beside every reference of the registry.

    All use one removal and one value function, so a set of events that several methods or metrics
    ask for is computed once. Results do not depend on ``batch_size`` beyond rounding.

    Args:
        model: The model; its mode is put back afterwards.
        histories: Whose predictions are explained; intervals are over their users.
        methods: Names of the registry, or `compared_method` with options.
        options: What is measured; default: `Options()`.
        batch_size: Histories at a time; affects speed and memory alone.
        progress: Show a bar.

    Raises:
        ExplanationError: An unknown method, metric, removal or target, a method that cannot use
            the removal, or a history without events.
    """
    options = options or Options()
    refuse_empty(histories)
    compared = methods_compared(methods, options.removals)
    starts = range(0, len(histories), batch_size)
    tables = [
        measure_batch(model, histories[start : start + batch_size], compared, options, first=start)
        for start in tqdm(starts, unit="batch", desc="faithfulness", disable=not progress)
    ]
    return FaithfulnessResult.of(pa.concat_tables(tables), compared)


def refuse_empty(histories: Sequence[History]) -> None:
    """Raise an `ExplanationError` where there is nothing to explain."""
    empty = [history.user_id for history in histories if not len(history)]
    if empty or not len(histories):
        raise ExplanationError(
            f"user {empty[0]!r} has no event" if empty else "there is no history",
            where="faithfulness",
            expected="histories with at least one event each",
            fix="leave such users out",
        )
