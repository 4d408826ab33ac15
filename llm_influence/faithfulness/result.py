"""Result of a comparison: means, paired bootstrap intervals, tables and curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, product
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.games import STEPS
from llm_influence.faithfulness.metrics import METRICS
from llm_influence.influence.plots import BASELINE, MARKERS, OKABE_ITO
from llm_influence.numerics import bootstrap_interval
from llm_influence.types import FloatArray, IntArray
from llm_influence.utils import require, without_formula

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXTS = ("user_id", "removal", "method", "metric")
SCHEMA = pa.schema(
    [("history", pa.int32()), *((name, pa.string()) for name in TEXTS), ("value", pa.float64())]
)
"""Columns of the rows: one metric of one method on one history; nan where it is not defined."""
DRAWS = 2_000
"""Number of bootstrap resamples of users behind every interval."""
DECISIVE = ("lds", "deletion_auc", "insertion_auc", "comprehensiveness_aopc")
"""Metrics on which a method should beat the baselines."""
ARROWS = {"high": "↑", "low": "↓", "zero": "→ 0"}
SIGNS = {"high": 1, "low": -1}
"""Sign of a difference that is an improvement."""
UNDECIDED, UNDEFINED = "°", "n/a"
"""Marks of values that are not better than random, and of values that are not defined."""
POINTS_WIDTH = 5.0
"""Width on the horizontal axis over which methods are spread, so that no bar hides another."""
PANELS = {
    "deletion": ("most influential events removed (%)", "Deletion: lower is better"),
    "insertion": ("most influential events kept (%)", "Insertion: higher is better"),
}

Record = dict[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users with its 95% bootstrap interval; nan where no user has the metric."""

    mean: float
    low: float
    high: float
    histories: int
    """Number of histories behind the mean."""

    @property
    def sign(self) -> int:
        """1 above zero, -1 below, 0 where the interval contains zero or nothing."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        """Mean and interval with three digits."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, eq=False)
class FaithfulnessResult:
    """Metrics of several methods, history by history.

    Attributes:
        rows: One row for each history, removal, method and metric (`SCHEMA`). Besides the metrics
            there are the points of the curves (``deletion@10``, ..., ``insertion@100``) and
            ``evaluations``.
        methods: Labels of the methods in their given order, baselines last.
        baselines: Labels of the baselines.
    """

    rows: pa.Table
    methods: Sequence[str]
    baselines: Sequence[str]
    _intervals: dict[tuple[str, ...], Interval] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def removals(self) -> list[str]:
        """Removals, the chosen one first and a second one for comparison after it."""
        return list(dict.fromkeys(removal for removal, _, _ in self._columns))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in the order of the registry."""
        present = set(self.rows["metric"].unique().to_pylist())
        return [name for name in METRICS if name in present]

    def values(self, method: str, metric: str, removal: str | None = None) -> FloatArray:
        """(N,) values of a metric, history by history.

        Raises:
            ExplanationError: It was not measured.
        """
        key = (removal or self.removals[0], method, metric)
        if key not in self._columns:
            found = f"{metric!r} of {method!r} under {key[0]!r} was not measured"
            expected = f"methods {', '.join(self.methods)}; metrics {', '.join(self.metrics)}"
            fix = "name a method, metric and removal that were measured"
            raise ExplanationError(found, where="FaithfulnessResult", expected=expected, fix=fix)
        return self._columns[key]

    def interval(self, method: str, metric: str, removal: str | None = None) -> Interval:
        """Mean of a metric with its interval over users."""
        key = (method, metric, removal or self.removals[0])
        if key not in self._intervals:
            self._intervals[key] = self.interval_of(self.values(*key))
        return self._intervals[key]

    def difference(
        self, method: str, other: str, metric: str, removal: str | None = None
    ) -> Interval:
        """Mean difference ``method - other``, paired: the same users are resampled for both."""
        key = (method, other, metric, removal or self.removals[0])
        if key not in self._intervals:
            ours, theirs = (self.values(label, *key[2:]) for label in (method, other))
            self._intervals[key] = self.interval_of(ours - theirs)
        return self._intervals[key]

    def interval_of(self, values: FloatArray) -> Interval:
        """Mean of any (N,) values, history by history, with its interval over users."""
        defined = ~np.isnan(values)
        if not defined.any():
            return Interval(np.nan, np.nan, np.nan, 0)
        low, high = bootstrap_interval(values[defined], self._users[defined], draws=DRAWS)
        return Interval(float(values[defined].mean()), low, high, int(defined.sum()))

    def summary(self) -> list[Record]:
        """One record for each removal, method and metric.

        ``difference`` is the paired difference from the baseline ``random``.
        """
        keys = product(self.removals, self.methods, [*self.metrics, "evaluations"])
        return [self._record(method, metric, removal) for removal, method, metric in keys]

    def misleading(self, removal: str | None = None) -> list[Record]:
        """Methods that do not beat a baseline on a decisive metric, by their paired interval.

        ``verdict`` is ``worse than`` where the interval lies on the wrong side of zero, else
        ``no better than``.
        """
        records: list[Record] = []
        methods = [label for label in self.methods if label not in self.baselines]
        metrics = [name for name in DECISIVE if name in self.metrics]
        for method, metric, baseline in product(methods, metrics, self.baselines):
            difference = self.difference(method, baseline, metric, removal)
            better = METRICS[metric].better
            if difference.sign != SIGNS[better]:
                verdict = "worse than" if difference.sign else "no better than"
                record: Record = {"method": method, "metric": metric, "verdict": verdict}
                record |= {"baseline": baseline, "better": better, "difference": difference.mean}
                records.append(record | {"low": difference.low, "high": difference.high})
        return records

    @cached_property
    def _columns(self) -> Mapping[tuple[str, str, str], FloatArray]:
        """(N,) values by removal, method and metric, ordered by history."""
        table = self.rows.sort_by("history")
        names = ("removal", "method", "metric")
        keys = zip(*(table[name].to_pylist() for name in names), strict=True)
        columns: dict[tuple[str, str, str], list[float]] = {}
        for key, value in zip(keys, table["value"].to_numpy(), strict=True):
            columns.setdefault(key, []).append(value)
        return {key: np.array(column) for key, column in columns.items()}

    @cached_property
    def _users(self) -> IntArray:
        """(N,) number of the user of each history."""
        table = self.rows.select(["history", "user_id"]).group_by(["history", "user_id"])
        users = table.aggregate([]).sort_by("history")["user_id"].to_pylist()
        return np.unique(users, return_inverse=True)[1]

    def _record(self, method: str, metric: str, removal: str) -> Record:
        interval = self.interval(method, metric, removal)
        difference = self.difference(method, "random", metric, removal)
        record: Record = {"removal": removal, "method": method, "metric": metric}
        record["better"] = METRICS[metric].better if metric in METRICS else "low"
        record |= {"mean": interval.mean, "low": interval.low, "high": interval.high}
        record |= {"histories": interval.histories, "difference": difference.mean}
        record |= {"difference_low": difference.low, "difference_high": difference.high}
        # None for nan: JSON has no nan.
        return {name: None if value != value else value for name, value in record.items()}


def to_markdown(result: FaithfulnessResult, removal: str | None = None) -> str:
    """A table with a row for each method and a column for each metric: mean and 95% interval."""
    removal = removal or result.removals[0]
    heads = [f"{name} {ARROWS[METRICS[name].better]}" for name in result.metrics]
    lines = [
        f"Removal `{removal}`. Mean [95% bootstrap interval over users]; {UNDECIDED} not better "
        f"than `random`, paired over the same users; {UNDEFINED} not defined.",
        "",
        "| method | " + " | ".join([*heads, "evaluations"]) + " |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    for method in result.methods:
        cells = [_cell(result, method, metric, removal) for metric in result.metrics]
        evaluations = result.interval(method, "evaluations", removal).mean
        name = f"`{method}`" + (" (baseline)" if method in result.baselines else "")
        lines.append("| " + " | ".join([name, *cells, f"{evaluations:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def _cell(result: FaithfulnessResult, method: str, metric: str, removal: str) -> str:
    interval = result.interval(method, metric, removal)
    if not interval.histories:
        return UNDEFINED
    sign = SIGNS.get(METRICS[metric].better)
    difference = result.difference(method, "random", metric, removal)
    compared = sign is not None and method != "random" and difference.histories
    return f"{interval}{UNDECIDED if compared and difference.sign != sign else ''}"


def to_csv(result: FaithfulnessResult) -> str:
    """`FaithfulnessResult.summary` as CSV."""
    records = result.summary()
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: without_formula(value) for name, value in record.items()} for record in records
    )
    return text.getvalue()


def misleading_lines(result: FaithfulnessResult, removal: str | None = None) -> list[str]:
    """Sentences on methods that do not beat a baseline on a decisive metric."""
    return [
        f"{row['method']} is {row['verdict']} {row['baseline']} on {row['metric']}: "
        f"difference {row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}], "
        f"{row['better']} is better"
        for row in result.misleading(removal)
    ]


def plot_curves(
    result: FaithfulnessResult, methods: Sequence[str] | None = None, removal: str | None = None
) -> Figure:
    """Deletion and insertion curves with 95% intervals, one line for each method.

    The vertical axis is the change of the target from the whole history, user by user: users
    differ far more in the target itself than methods do. Colours are safe for colour-blind
    readers; baselines are grey and dashed.

    Args:
        result: What was measured.
        methods: Methods to draw; default: all.
        removal: Removal to draw; default: the first.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", extra="plot", purpose="plot_curves")
    figure = figures.Figure(figsize=(13, 5.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, (x_label, title)) in zip(axes, PANELS.items(), strict=True):
        _draw(axis, result, name, methods or result.methods, removal)
        axis.axhline(0, color="#D1D5DB", linewidth=0.8, zorder=0)
        axis.set_xlabel(x_label)
        axis.set_ylabel("change of the target (log-odds)")
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(STEPS)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return figure


def _draw(
    axis: Axes, result: FaithfulnessResult, name: str, methods: Sequence[str], removal: str | None
) -> None:
    colors, markers = cycle(OKABE_ITO), cycle(MARKERS)
    offsets = POINTS_WIDTH * ((np.arange(len(methods)) + 0.5) / len(methods) - 0.5)
    for method, offset in zip(methods, offsets, strict=True):
        whole = result.values(method, f"insertion@{STEPS[-1]}", removal)
        curves = [result.values(method, f"{name}@{step}", removal) - whole for step in STEPS]
        points = [result.interval_of(values) for values in curves]
        mean, low, high = np.array([(point.mean, point.low, point.high) for point in points]).T
        is_baseline = method in result.baselines
        axis.errorbar(
            np.array(STEPS) + offset,
            mean,
            yerr=[mean - low, high - mean],
            color=BASELINE if is_baseline else next(colors),
            marker=next(markers),
            linestyle="--" if is_baseline else "-",
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            label=method,
        )
