"""Factors, which are columns cut into a few levels, and events coded and summed by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_influence.analysis.columns import (
    MINUTE,
    Column,
    Windows,
    exact_sum,
    select,
    sql_name,
    sql_text,
)
from llm_influence.analysis.statistics import GROUPS
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import DynamicsOptions, Response
from llm_influence.errors import DataError
from llm_influence.influence.facts import plain
from llm_influence.types import FloatArray, IntArray

# --- factors ---------------------------------------------------------------------------------

MOST_LEVELS = 12
"""A column with more distinct values is cut: numbers into ranges, names into the most frequent."""
MOST_NAMES = 1000
"""By default, a column with more distinct names is taken as free text and left out."""
RANGES = 5
LEAST_USERS = 5  # a value of a user feature with fewer users is no level of its own
UNKNOWN, OTHER = "(unknown)", "(others)"


@dataclass(frozen=True, slots=True)
class Factor:
    """A column cut into levels."""

    name: str  # Name of the column in the view
    levels: tuple[str, ...]  # (L,) names in the order of their codes 0, 1...; some may not occur
    codes: Callable[[str], str]  # SQL of the code, of the SQL of the column

    def column(self, view: InfluenceView) -> Column:
        """The view's column with the codes of the levels."""
        column = view.columns[self.name]
        return Column(self.codes(column.sql), column.needs, column.joins)

    def of_table(self, table: str) -> str:
        """SQL of the code over a table that holds the column under its own name."""
        column = f"{table}.{sql_name(self.name.partition(':')[2] or self.name)}"
        return self.codes(column)


def factors_of(
    view: InfluenceView, names: Iterable[str], *, required: bool
) -> tuple[list[Factor], dict[str, str]]:
    """The factors among some columns, and the reason why each other column is none."""
    cut = {name: factor_of(view, name, required=required) for name in dict.fromkeys(names)}
    factors = [factor for factor in cut.values() if isinstance(factor, Factor)]
    return factors, {name: reason for name, reason in cut.items() if isinstance(reason, str)}


def factor_of(view: InfluenceView, name: str, *, required: bool = True) -> Factor | str:
    """The factor of a column, or the reason why the column is none.

    A ``required`` column is cut even if it is free text; equal values are an error.
    """
    view.select(name)
    column = view.columns[name]
    counts = _counts(view, name)
    values, events, users = counts["level"], counts["events"], counts["users"]
    if len(values) < 2:
        if required:
            raise DataError(
                f"{name!r} is {values[0] if values else 'nothing'!r} on every row",
                where="factors",
                expected="a column with at least two values",
                fix=f"leave {name!r} out",
            )
        return f"the same everywhere: {UNKNOWN if values[0] is None else values[0]}"
    if column.levels:
        levels = (*column.levels, UNKNOWN) if None in values else column.levels
        fixed = f"coalesce({column.codes}, {len(column.levels)})"  # reads the rows of the view
        return Factor(name, levels, lambda _: fixed)
    if column.number:
        return _numbers(name, values, events, users)
    if len(values) > MOST_NAMES and not required:
        return f"{len(values):,} distinct values, more than {MOST_NAMES:,}"
    return _names(name, values, users)


def _counts(view: InfluenceView, name: str) -> dict[str, list[Any]]:
    """Distinct values, the most frequent first, with their events and (user features) users."""
    level = "v::VARCHAR"
    if view.columns[name].number:  # three digits, so that amounts of money are few values
        level = (
            "CASE WHEN isnan(v) THEN NULL WHEN v = 0 THEN 0 "
            "ELSE round(v::DOUBLE, 2 - floor(log10(abs(v::DOUBLE)))::INTEGER) END"
        )
    if name.startswith("user:"):
        query = (
            f"SELECT {level} AS level, sum(events)::BIGINT AS events, "
            f"count(DISTINCT user_code) AS users FROM (SELECT {view.columns[name].sql} AS v, "
            "x.events, x.user_code FROM explanations AS x JOIN user_codes AS c USING (user_code) "
            "LEFT JOIN users AS u ON u.user_id = c.user_id) GROUP BY 1"
        )
    else:
        query = (
            f"SELECT {level} AS level, count(*) AS events, {LEAST_USERS} AS users "
            f"FROM ({view.select(name)}) AS t(v) GROUP BY 1"
        )
    return view.table(f"{query} ORDER BY events DESC, level").to_pydict()


def _names(name: str, values: Sequence[str | None], users: Sequence[int]) -> Factor:
    """The most frequent names, and the others as one level."""
    known = [value for value in values if value is not None]
    unknown = len(known) < len(values)
    frequent = {value for value, n in zip(values, users, strict=True) if n >= LEAST_USERS}
    kept = [value for value in known if value in frequent]
    if len(known) > MOST_LEVELS:
        kept = kept[: MOST_LEVELS - 1]
    tail = ([OTHER] if len(kept) < len(known) else []) + ([UNKNOWN] if unknown else [])
    last = len(kept) + len(tail) - 1

    def codes(column: str) -> str:
        names = (f"WHEN {column} = {sql_text(text)} THEN {n}" for n, text in enumerate(kept))
        return f"CASE WHEN {column} IS NULL THEN {last} {' '.join(names)} ELSE {len(kept)} END"

    return Factor(name, (*kept, *tail), codes)


def _numbers(
    name: str, values: Sequence[float | None], events: Sequence[int], users: Sequence[int]
) -> Factor:
    """Every number as a level, or ranges with about the same number of events."""
    numbers = np.array([value for value in values if value is not None])
    weights = np.array([n for value, n in zip(values, events, strict=True) if value is not None])
    order = np.argsort(numbers)
    numbers, weights = numbers[order], weights[order]
    if len(numbers) <= MOST_LEVELS and min(users) >= LEAST_USERS:
        edges, labels = numbers, [plain(number) for number in numbers]
    else:
        below = np.cumsum(weights) - weights
        places = np.searchsorted(below / weights.sum(), np.arange(RANGES) / RANGES)
        places = np.unique(np.minimum(places, len(numbers) - 1))
        edges = numbers[places]
        ends = [numbers[stop - 1] for _, stop in pairwise([*places, len(numbers)])]
        labels = [f"{plain(low)} to {plain(high)}" for low, high in zip(edges, ends, strict=True)]
    middles = (edges[1:] + numbers[np.searchsorted(numbers, edges[1:]) - 1]) / 2

    def codes(column: str) -> str:
        none = f"CASE WHEN {column} IS NULL OR isnan({column}) THEN {len(labels)}"
        cases = (f"WHEN {column} < {float(cut)!r} THEN {n}" for n, cut in enumerate(middles))
        return f"{none} {' '.join(cases)} ELSE {len(labels) - 1} END"

    return Factor(name, (*labels, *([UNKNOWN] if None in values else [])), codes)


# --- every event as integer codes and a score ------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some events; all events of a user are in one batch."""

    user: IntArray  # (n,) user codes, never decreasing
    codes: npt.NDArray[np.uint8]  # (n, F) level of each factor
    response: FloatArray  # (n,) score or its absolute value

    def columns(self) -> list[IntArray]:
        """F arrays (n,) of codes as int64, so that products do not overflow."""
        return [self.codes[:, f].astype(np.int64) for f in range(self.codes.shape[1])]


class CodedEvents:
    """The events of a view coded by F factors, in a temporary table of its database.

    Every event is coded and sorted once, into about twenty bytes.
    """

    def __init__(self, view: InfluenceView, factors: Sequence[Factor], response: Response) -> None:
        self.view, self.factors = view, tuple(factors)
        columns = {
            "user": view.columns["user"],
            "explanation": view.columns["explanation"],
            "position": view.columns["position"],
            "response": view.columns["score"],
            **{f"f{place}": factor.column(view) for place, factor in enumerate(factors)},
        }
        codes = ", ".join(f"f{place}::UTINYINT AS f{place}" for place in range(len(factors)))
        score = "abs(response)" if response == "size" else "response"
        view.execute("DROP TABLE IF EXISTS coded")
        view.execute(
            f'CREATE TABLE coded AS SELECT "user", {codes}, {score} AS response '
            f"FROM ({select(columns, parts=view.parts)}) "
            'ORDER BY "user", explanation, position'
        )

    def batches(self) -> Iterator[Batch]:
        """All events, in batches of whole users."""
        yield from map(self._batch, self.view.grouped_batches("SELECT * FROM coded", "user"))

    def of_users(self, users: IntArray) -> Batch:
        """The events of some users, in memory."""
        listed = ", ".join(str(int(user)) for user in np.sort(users))
        return self._batch(self.view.table(f'SELECT * FROM coded WHERE "user" IN ({listed})'))

    def _batch(self, table: pa.Table) -> Batch:
        codes = [table[f"f{place}"].to_numpy() for place in range(len(self.factors))]
        return Batch(
            table["user"].to_numpy(), np.stack(codes, axis=1), table["response"].to_numpy()
        )


# --- sums by group of users, age and window --------------------------------------------------

EVERYTHING = "all events"
FINE = 4  # decay curves cut each doubling of (1 minute + age) into so many ages
BINS = 26 * FINE  # ages, up to about a century
WIDE = 2  # fine ages that are one age of a window


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Sums over the events of one level of a factor, or over all events.

    Users are dealt into G groups (`statistics.GROUPS`), the units of standard errors.
    """

    factor: str  # Name of the factor; `EVERYTHING` for all events
    level: str  # Name of the level; empty for all events
    totals: FloatArray  # (G, K) summed scores by group of users and age, K = `BINS`
    events: FloatArray  # (G, K) numbers of events
    ages: FloatArray  # (K,) mean age in seconds, nan without events
    # (G, W, C) summed scores by group, window of the prediction and wide age
    window_totals: FloatArray
    window_events: FloatArray  # (G, W, C) numbers of events


def gather_cells(
    view: InfluenceView,
    factors: Sequence[Factor],
    windows: Windows,
    options: DynamicsOptions | None = None,
    *,
    squares: bool = False,
) -> Iterator[Cells]:
    """Sum all events, and those of each level that occurs, in one pass over the tables.

    ``windows`` cut the time of the prediction, the last event of each history. With ``squares`` the
    squares of the scores are summed, with their signs.
    """
    flags = ["by_window", *(f"f{place}" for place in range(len(factors)))]
    sums = view.table(_query(view, factors, windows, options or DynamicsOptions(), squares))
    grouped_by = {name: sums[f"of_{name}"].to_numpy() == 0 for name in flags}
    by_window = grouped_by.pop("by_window")
    everything = ~np.any([np.zeros(len(sums), dtype=bool), *grouped_by.values()], axis=0)
    yield _cells(sums, everything, by_window, (EVERYTHING, ""), windows)
    for place, factor in enumerate(factors):
        codes = sums[f"f{place}"].fill_null(0).to_numpy()
        for code, level in enumerate(factor.levels):
            rows = grouped_by[f"f{place}"] & (codes == code)
            if rows.any():
                yield _cells(sums, rows, by_window, (factor.name, level), windows)


def signed_score(view: InfluenceView, options: DynamicsOptions) -> tuple[str, str]:
    """SQL of the response, and of its factor by ``match`` (`InfluenceView.sign_of`)."""
    sign = view.sign_of(options.match)
    score = f"score * {sign}"
    return f"abs({score})" if options.response == "size" else score, sign


_OWN = "contains(', ' || r.target_id || ', ', ', ' || r.item_id || ', ')"


def _query(
    view: InfluenceView,
    factors: Sequence[Factor],
    windows: Windows,
    options: DynamicsOptions,
    squares: bool,
) -> str:
    match, (score, sign) = options.match, signed_score(view, options)
    score = f"{score} * abs({score})" if squares else score
    names = ["user", "age_seconds", "last_time", "score", *([match] if match else [])]
    columns: dict[str, Column] = {
        **{"side" if name == match else name: view.columns[name] for name in names},
        **{f"f{place}": factor.column(view) for place, factor in enumerate(factors)},
    }
    apart = "TRUE"
    if view.drawn:  # the pull at an event's own item is a repeat, not a link
        columns["own"] = Column(_OWN, ("item_id", "target_id"))
        apart = "NOT own"
    codes = [f"f{place}" for place in range(len(factors))]
    fine = f"least(floor({FINE} * log2(1 + age_seconds / {MINUTE})), {BINS - 1})::INTEGER"
    events = (
        f'SELECT "user" % {GROUPS} AS part, age_seconds AS age, {fine} AS fine, '
        f"{fine} // {WIDE} AS wide, "
        f"{windows.sql.format('last_time')} AS by_window, {score} AS score"
        + "".join(f", {name}" for name in codes)
        + f" FROM ({select(columns, parts=view.parts)}) WHERE {sign} IS NOT NULL AND {apart}"
    )
    sets = ", ".join(
        f"({', '.join([*cut, *own])})"
        for own in ([], *([name] for name in codes))
        for cut in (("part", "fine"), ("part", "by_window", "wide"))
    )
    flags = "".join(f", grouping({name}) AS of_{name}" for name in ("by_window", *codes))
    return (
        f"SELECT part, fine, by_window, wide{''.join(f', {name}' for name in codes)}{flags}, "
        f"{exact_sum('score')} AS total, count(*) AS events, sum(age)::DOUBLE AS age "
        f"FROM ({events}) GROUP BY GROUPING SETS ({sets})"
    )


def _cells(
    sums: pa.Table, rows: np.ndarray, by_window: np.ndarray, name: tuple[str, str], windows: Windows
) -> Cells:
    tables = [sums.filter(pa.array(rows & chosen)) for chosen in (~by_window, by_window)]
    shapes = ((GROUPS, BINS), (GROUPS, len(windows.starts), BINS // WIDE))
    keys = (("part", "fine"), ("part", "by_window", "wide"))

    def dense(kind: int, values: str) -> FloatArray:
        filled = np.zeros(shapes[kind])
        places = tuple(tables[kind][key].to_numpy() for key in keys[kind])
        filled[places] = tables[kind][values].to_numpy()
        return filled

    events = dense(0, "events")
    count = events.sum(axis=0)
    ages = np.divide(dense(0, "age").sum(axis=0), count, out=np.full(BINS, np.nan), where=count > 0)
    return Cells(*name, dense(0, "total"), events, ages, dense(1, "total"), dense(1, "events"))
