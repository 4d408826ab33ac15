"""Means, paired bootstrap intervals and differences of what was measured.

A result as Markdown and CSV.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from llm_influence.errors import ExplanationError
from llm_influence.evaluation.bootstrap import percentiles, resampled_means
from llm_influence.faithfulness.metrics import METRICS
from llm_influence.faithfulness.options import ComparedMethod
from llm_influence.types import FloatArray, IntArray

SCHEMA = pa.schema(
    [
        ("history", pa.int32()),
        ("user_id", pa.string()),
        ("removal", pa.string()),
        ("method", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
"""A row is one metric of one method on one history; nan where it is not defined."""
DRAWS = 2_000
"""Resamples of users behind every interval."""
DECISIVE = ("lds", "deletion_auc", "insertion_auc", "comprehensiveness_aopc")
"""Metrics on which a method must beat the references, or it misleads."""

Record = dict[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users with its 95% bootstrap interval; nan where no user has the metric.

    Attributes:
        mean: The mean.
        low: Lower end.
        high: Upper end.
        histories: How many histories it rests on.
    """

    mean: float
    low: float
    high: float
    histories: int

    @property
    def sign(self) -> int:
        """1 above zero, -1 below, 0 where the interval holds zero or nothing."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True, eq=False)
class FaithfulnessResult:
    """Everything that was measured.

    Attributes:
        rows: One row a history, removal, method and metric (`SCHEMA`). Beside the metrics stand
            the points of the curves (``deletion@10``, ..., ``insertion@100``) and ``evaluations``.
        methods: Labels in the order given, references last.
        references: Labels of the references.
    """

    rows: pa.Table
    methods: Sequence[str]
    references: Sequence[str]
    _known: dict[tuple[str, ...], Interval] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, rows: pa.Table, compared: Sequence[ComparedMethod]) -> FaithfulnessResult:
        """A result from its rows."""
        labels = [each.label for each in compared]
        return cls(rows, labels, [each.label for each in compared if each.reference])

    @property
    def removals(self) -> list[str]:
        """Removals, the one asked for first."""
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
            raise ExplanationError(
                f"{metric!r} of {method!r} under {key[0]!r} was not measured",
                where="FaithfulnessResult",
                expected=f"methods {', '.join(self.methods)}; metrics {', '.join(self.metrics)}",
                fix="ask for something that was measured",
            )
        return self._columns[key]

    def interval(self, method: str, metric: str, removal: str | None = None) -> Interval:
        """Mean of a metric with its interval over users."""
        key = (method, metric, removal or self.removals[0])
        if key not in self._known:
            self._known[key] = self.interval_of(self.values(*key))
        return self._known[key]

    def difference(
        self, method: str, other: str, metric: str, removal: str | None = None
    ) -> Interval:
        """Mean difference ``method - other``, paired: the same users, drawn together."""
        key = (method, other, metric, removal or self.removals[0])
        if key not in self._known:
            ours, theirs = (self.values(each, *key[2:]) for each in (method, other))
            self._known[key] = self.interval_of(ours - theirs)
        return self._known[key]

    def summary(self) -> list[Record]:
        """Flat records, one a removal, method and metric, each beside ``random``.

        ``difference`` is the paired difference from ``random``.
        """
        return [
            self._record(method, metric, removal)
            for removal in self.removals
            for method in self.methods
            for metric in [*self.metrics, "evaluations"]
        ]

    def misleading(self, removal: str | None = None) -> list[Record]:
        """Methods that do not beat a reference on a decisive metric, as paired intervals say.

        ``verdict`` is ``worse than`` where the interval lies on the wrong side of zero, else
        ``no better than``.
        """
        found: list[Record] = []
        for method in [label for label in self.methods if label not in self.references]:
            for metric in [name for name in DECISIVE if name in self.metrics]:
                for reference in self.references:
                    apart = self.difference(method, reference, metric, removal)
                    wanted = 1 if METRICS[metric].better == "high" else -1
                    if apart.sign != wanted:
                        found.append(
                            {
                                "method": method,
                                "metric": metric,
                                "verdict": "worse than" if apart.sign else "no better than",
                                "reference": reference,
                                "better": METRICS[metric].better,
                                "difference": apart.mean,
                                "low": apart.low,
                                "high": apart.high,
                            }
                        )
        return found

    @cached_property
    def _columns(self) -> Mapping[tuple[str, str, str], FloatArray]:
        """(N,) values by removal, method and metric, ordered by history."""
        table = self.rows.sort_by("history")
        keys = zip(
            *(table[name].to_pylist() for name in ("removal", "method", "metric")), strict=True
        )
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

    def interval_of(self, values: FloatArray) -> Interval:
        """Mean of any (N,) values, history by history, with its interval over users."""
        defined = ~np.isnan(values)
        if not defined.any():
            return Interval(np.nan, np.nan, np.nan, 0)
        (means,) = resampled_means([values[defined]], self._users[defined], draws=DRAWS)
        return Interval(float(values[defined].mean()), *percentiles(means), int(defined.sum()))

    def _record(self, method: str, metric: str, removal: str) -> Record:
        found = self.interval(method, metric, removal)
        apart = self.difference(method, "random", metric, removal)
        return {
            "removal": removal,
            "method": method,
            "metric": metric,
            "better": METRICS[metric].better if metric in METRICS else "low",
            "mean": _number(found.mean),
            "low": _number(found.low),
            "high": _number(found.high),
            "histories": found.histories,
            "difference": _number(apart.mean),
            "difference_low": _number(apart.low),
            "difference_high": _number(apart.high),
        }


def _number(value: float) -> float | None:
    """None for nan: JSON has no nan."""
    return None if np.isnan(value) else value


ARROWS = {"high": "↑", "low": "↓", "zero": "→ 0"}
UNDECIDED, UNDEFINED = "°", "n/a"
"""Marks what is not better than random: the paired interval of the difference says so."""


def to_markdown(result: FaithfulnessResult, removal: str | None = None) -> str:
    """One row a method, one column a metric: mean and 95% interval over users."""
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
        name = f"`{method}`" + (" (reference)" if method in result.references else "")
        lines.append("| " + " | ".join([name, *cells, f"{evaluations:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def to_csv(result: FaithfulnessResult) -> str:
    """`FaithfulnessResult.summary` as CSV, a row a removal, method and metric."""
    records = result.summary()
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def misleading_lines(result: FaithfulnessResult, removal: str | None = None) -> list[str]:
    """Plain sentences on methods that do not beat a reference on a decisive metric."""
    return [
        f"{found['method']} is {found['verdict']} {found['reference']} on {found['metric']}: "
        f"difference {found['difference']:.3f} [{found['low']:.3f}, {found['high']:.3f}], "
        f"{found['better']} is better"
        for found in result.misleading(removal)
    ]


def _cell(result: FaithfulnessResult, method: str, metric: str, removal: str) -> str:
    found = result.interval(method, metric, removal)
    if not found.histories:
        return UNDEFINED
    better = METRICS[metric].better
    wanted = {"high": 1, "low": -1}.get(better)
    apart = result.difference(method, "random", metric, removal)
    marked = wanted is not None and method != "random" and apart.sign != wanted and apart.histories
    return _words(found) + (UNDECIDED if marked else "")


def _words(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
