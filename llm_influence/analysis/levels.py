"""Calendar windows, UTC, into which predictions fall.

Factors: columns of the view cut into few levels, each with its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from llm_influence.analysis.bins import DAY, quoted
from llm_influence.analysis.columns import Column
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import ConfigError, DataError, choices
from llm_influence.influence.facts import plain

NAMED = ("day", "week", "month")
MOST_WINDOWS = 200
"""More say little of each, and make the answer long."""
FEW, WEEK = 31, 7
"""Without a wish: days while there are at most `FEW`, then weeks, then months."""
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows one after another.

    Attributes:
        kind: ``day``, ``week`` (from Monday), ``month``, or ``N days``.
        starts: (W,) first day of each.
        sql: Expression over ``{0}``, Unix seconds, that gives the place of its window.
    """

    kind: str
    starts: tuple[date, ...]
    sql: str

    def place_of(self, day: date) -> int:
        """Which window a day falls into; -1 before the first."""
        return sum(start <= day for start in self.starts) - 1


def windows_of(first: int, last: int, asked: str | None = None) -> Windows:
    """Cut the time from ``first`` to ``last``, Unix seconds, into windows.

    Args:
        first: The first prediction.
        last: The last one.
        asked: ``day``, ``week``, ``month``, or a number of days; default: by the time covered.

    Raises:
        ConfigError: ``asked`` is none of these, or gives more than `MOST_WINDOWS`.
        DataError: It was asked for, and everything falls into one window.
    """
    days = first // DAY, last // DAY
    kind = asked or _by_length(days[1] - days[0] + 1)
    if kind == "month":
        begin, end = (_month(day) for day in days)
        starts = [date(number // 12, number % 12 + 1, 1) for number in range(begin, end + 1)]
        moment = "make_timestamp({0}::BIGINT * 1000000)"
        sql = f"(year({moment}) * 12 + month({moment}) - {begin + 1})"
    else:
        size, origin = _size(kind), days[0]
        if kind == "week":
            origin -= (days[0] + 3) % WEEK  # 1 January 1970 was a Thursday
        count = (days[1] - origin) // size + 1
        _refuse_many(count, kind)
        starts = [EPOCH + timedelta(origin + size * place) for place in range(count)]
        sql = f"floor(({{0}} - {origin * DAY}) / {size * DAY})"
    _refuse_many(len(starts), kind)
    if asked and len(starts) == 1:
        raise DataError(
            f"all predictions fall into one window, the {kind} from {starts[0]}",
            where="drift",
            expected="at least two windows to compare",
            fix="narrow --window, or explain predictions of other times",
        )
    return Windows(kind, tuple(starts), f"{sql}::INTEGER")


def _by_length(days: int) -> str:
    if days <= FEW:
        return "day"
    return "week" if days <= FEW * WEEK else "month"


def _size(kind: str) -> int:
    """Days of a window."""
    if kind in ("day", "week"):
        return 1 if kind == "day" else WEEK
    number = kind.removesuffix(" days")
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            f"window {kind!r}",
            where="--window",
            expected=choices(NAMED, kind) + ", or a number of days",
            fix="write it as week, or 14",
        )
    return int(number)


def _month(day: int) -> int:
    moment = EPOCH + timedelta(day)
    return moment.year * 12 + moment.month - 1


def _refuse_many(count: int, kind: str) -> None:
    if count > MOST_WINDOWS:
        raise ConfigError(
            f"{count:,} windows of a {kind.removesuffix(' days')}",
            where="--window",
            expected=f"at most {MOST_WINDOWS}",
            fix="ask for wider windows, as month",
        )


MOST_LEVELS = 12
"""A column with more distinct values is cut: numbers into ranges, names into the most frequent."""
MOST_NAMES = 1000
"""A column with more distinct names is free text and no factor unless it is asked for."""
RANGES = 5
LEAST_USERS = 5
"""A user feature's level with fewer users is no level of its own: nothing is known of how such
users differ among themselves."""
UNKNOWN, OTHER = "(unknown)", "(others)"


@dataclass(frozen=True, slots=True)
class Factor:
    """A column with levels.

    Attributes:
        name: The column's name in the view.
        levels: (L,) names, in the order of their codes 0, 1...; they need not all occur.
        codes: SQL over the column ``{}`` that gives the code, or over the rows if ``of_rows``.
        of_rows: ``codes`` is a column of its own (`Column.codes`).
    """

    name: str
    levels: tuple[str, ...]
    codes: str
    of_rows: bool


def factor_of(view: InfluenceView, name: str, *, asked: bool = True) -> Factor | str:
    """Cut a column into levels, or say why it is no factor.

    Args:
        view: The tables.
        name: A column of the view.
        asked: The user named it: free text is cut too, and a column without difference is an
            error.

    Raises:
        DataError: There is no such column; or it is ``asked`` for and the same everywhere.
    """
    view.select(name)
    column = view.columns[name]
    counts = _counts(view, name)
    values, events, users = counts["level"], counts["events"], counts["users"]
    if len(values) < 2:
        if asked:
            raise DataError(
                f"{name!r} is {values[0] if values else 'nothing'!r} on every row",
                where="factors",
                expected="a column with at least two values",
                fix=f"leave {name!r} out",
            )
        return f"the same everywhere: {UNKNOWN if values[0] is None else values[0]}"
    if column.levels:
        return _fixed(name, column, None in values)
    if column.number:
        return _numbers(name, values, events, users)
    if len(values) > MOST_NAMES and not asked:
        return f"{len(values):,} distinct values, more than {MOST_NAMES:,}"
    return _names(name, values, users)


def _counts(view: InfluenceView, name: str) -> dict[str, list[Any]]:
    """Distinct values, the most frequent first, with events and (of user features) users."""
    level = _level(view.columns[name])
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


def _level(column: Column) -> str:
    """Numbers are counted at three digits, so that amounts of money stay a short list."""
    if not column.number:
        return "v::VARCHAR"
    return (
        "CASE WHEN isnan(v) THEN NULL WHEN v = 0 THEN 0 "
        "ELSE round(v::DOUBLE, 2 - floor(log10(abs(v::DOUBLE)))::INTEGER) END"
    )


def _fixed(name: str, column: Column, unknown: bool) -> Factor:
    levels = (*column.levels, UNKNOWN) if unknown else column.levels
    return Factor(name, levels, f"coalesce({column.codes}, {len(column.levels)})", of_rows=True)


def _names(name: str, values: Sequence[str | None], users: Sequence[int]) -> Factor:
    """The most frequent names, the others together."""
    known = [value for value in values if value is not None]
    unknown = len(known) < len(values)
    often = {v for v, n in zip(values, users, strict=True) if n >= LEAST_USERS}
    kept = [value for value in known if value in often]
    if len(known) > MOST_LEVELS:
        kept = kept[: MOST_LEVELS - 1]
    tail = ([OTHER] if len(kept) < len(known) else []) + ([UNKNOWN] if unknown else [])
    cases = " ".join(f"WHEN {{0}} = {quoted(text)} THEN {code}" for code, text in enumerate(kept))
    last = len(kept) + len(tail) - 1
    codes = f"CASE WHEN {{0}} IS NULL THEN {last} {cases} ELSE {len(kept)} END"
    return Factor(name, (*kept, *tail), codes, of_rows=False)


def _numbers(
    name: str, values: Sequence[float | None], events: Sequence[int], users: Sequence[int]
) -> Factor:
    """Each number a level, or ranges with about as many events each."""
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
    cases = " ".join(f"WHEN {{0}} < {float(cut)!r} THEN {code}" for code, cut in enumerate(middles))
    unknown = [UNKNOWN] if None in values else []
    codes = (
        f"CASE WHEN {{0}} IS NULL OR isnan({{0}}) THEN {len(labels)} "
        f"{cases} ELSE {len(labels) - 1} END"
    )
    return Factor(name, (*labels, *unknown), codes, of_rows=False)
