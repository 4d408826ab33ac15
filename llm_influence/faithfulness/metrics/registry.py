"""Every metric with what there is to know about it, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_influence.errors import ExplanationError, choices
from llm_influence.faithfulness.game import Game, Scored
from llm_influence.types import FloatArray

Better = Literal["high", "low", "zero"]
Measure = Callable[[Game, Scored], FloatArray]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name everywhere.
        better: Which way is better: high, low, or near zero on either side.
        measure: ``(game, scored) -> (N,)`` values, nan where it is not defined.
        equation: The formula, plain text; symbols as in docs/faithfulness.md.
        paper: Where it comes from.
        lies: When it says something else than it seems to.
        default: Whether it is measured without being asked for.
    """

    name: str
    better: Better
    measure: Measure
    equation: str
    paper: str
    lies: str
    default: bool = True


METRICS: dict[str, Metric] = {}


def metric(
    name: str, *, better: Better, equation: str, paper: str, lies: str, default: bool = True
) -> Callable[[Measure], Measure]:
    """Make a function a metric; the arguments are those of `Metric`."""

    def add(measure: Measure) -> Measure:
        METRICS[name] = Metric(name, better, measure, equation, paper, lies, default)
        return measure

    return add


def find_metrics(names: Sequence[str] | None) -> list[Metric]:
    """The metrics of these names, or those measured by default.

    Raises:
        ExplanationError: One is not known.
    """
    if names is None:
        return [found for found in METRICS.values() if found.default]
    for name in names:
        if name not in METRICS:
            raise ExplanationError(
                f"unknown metric {name!r}",
                where="metrics",
                expected=choices(METRICS, name),
                fix="choose among them",
            )
    return [METRICS[name] for name in dict.fromkeys(names)]
