"""All methods of a batch of histories on one value function, and all metrics of their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.targets import BoundTarget, bind
from llm_influence.attribution.task import Attribution
from llm_influence.attribution.value_function import Removal, ValueFunction
from llm_influence.faithfulness.contenders import Contender
from llm_influence.faithfulness.game import STEPS, Game, Scored
from llm_influence.faithfulness.jitter import jittered
from llm_influence.faithfulness.metrics.erasure import deletion_values, insertion_values
from llm_influence.faithfulness.metrics.stability import RANDOMISATION, SENSITIVITY
from llm_influence.faithfulness.options import Options
from llm_influence.faithfulness.ranks import rank_target
from llm_influence.faithfulness.result import SCHEMA
from llm_influence.faithfulness.sanity import scrambled
from llm_influence.faithfulness.shared import SharedTask
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import FloatArray, History

CURVES = {"deletion": deletion_values, "insertion": insertion_values}
"""Curves whose points stand beside the metrics, as ``deletion@10`` and so on."""


def measure_batch(
    model: InfluenceModel,
    histories: Sequence[History],
    contenders: Sequence[Contender],
    options: Options,
    *,
    first: int = 0,
) -> pa.Table:
    """Every metric of N histories under every removal, a row each (`result.SCHEMA`).

    Args:
        model: The model.
        histories: N whole histories.
        contenders: What is compared.
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
            bench = _Bench(model, histories, shown, target, removal, contenders, options)
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
    contenders: Sequence[Contender]
    options: Options

    def measured(self) -> dict[str, dict[str, FloatArray]]:
        """(N,) values of every metric, and of points of curves and passes, by method."""
        metrics = self.options.measured
        wanted = {metric.name for metric in metrics}
        values = self._value_function(self.shown, self.target)
        game = self._game(values)
        found = self._run(self.shown, values)
        moved = self._jittered() if SENSITIVITY in wanted else []
        lost = self._scrambled() if RANDOMISATION in wanted else {}
        measured = {}
        for each in self.contenders:
            attribution = found[each.label]
            scored = Scored(
                scores=attribution.scores,
                orders=game.orders(attribution.scores),
                base=attribution.base,
                frame=attribution.frame,
                in_target_units=each.in_target_units,
                jittered=[draw[each.label].scores for draw in moved],
                scrambled=lost[each.label].scores if lost else None,
            )
            measured[each.label] = {
                **{metric.name: metric.measure(game, scored) for metric in metrics},
                **_points(game, scored),
                "passes": attribution.passes.astype(np.float64),
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
        for each in self.contenders:
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
