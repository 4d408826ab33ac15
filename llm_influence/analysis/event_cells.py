"""Every event as a few small integers and a score, on disk, user after user.

All that decay and drift need of the events: sums by user part, level, age and window.

One pass over the tables, whatever their size; what comes back is as large as the number of cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_influence.analysis.bins import MINUTE
from llm_influence.analysis.columns import Column, select, total
from llm_influence.analysis.levels import Factor, Windows
from llm_influence.analysis.statistics import PARTS, speaking
from llm_influence.analysis.tables import InfluenceView
from llm_influence.types import FloatArray, IntArray

Response = Literal["score", "size"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some events; those of a user stand together, also across batches.

    Attributes:
        user: (n,) codes of users, never decreasing.
        codes: (n, F) level of each factor.
        response: (n,) score, or its size.
    """

    user: IntArray
    codes: npt.NDArray[np.uint8]
    response: FloatArray

    def columns(self) -> list[IntArray]:
        """F arrays (n,) of codes, wide enough to be multiplied."""
        return [self.codes[:, f].astype(np.int64) for f in range(self.codes.shape[1])]


class CodedEvents:
    """The events of a view, coded by factors, in a temporary table of its database.

    Attributes:
        view: The view.
        factors: The F factors.
    """

    def __init__(self, view: InfluenceView, factors: Sequence[Factor], response: Response) -> None:
        """Code and sort every event once; later evaluations read about twenty bytes of each."""
        self.view, self.factors = view, tuple(factors)
        columns = {
            "user": view.columns["user"],
            "explanation": view.columns["explanation"],
            "position": view.columns["position"],
            "response": view.columns["score"],
            **{f"f{place}": coded_column(view, factor) for place, factor in enumerate(factors)},
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
        """All events."""
        return self._read("SELECT * FROM coded")

    def of_users(self, users: IntArray) -> Batch:
        """The events of some users, in memory."""
        listed = ", ".join(str(int(user)) for user in np.sort(users))
        query = f'SELECT * FROM coded WHERE "user" IN ({listed})'
        parts = list(self._read(query))
        return Batch(
            np.concatenate([part.user for part in parts]),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.response for part in parts]),
        )

    def _read(self, query: str) -> Iterator[Batch]:
        for table in self.view.batches(query):
            codes = [table[f"f{place}"].to_numpy() for place in range(len(self.factors))]
            yield Batch(
                table["user"].to_numpy(), np.stack(codes, axis=1), table["response"].to_numpy()
            )


def coded_column(view: InfluenceView, factor: Factor) -> Column:
    """The column of the view that holds the codes of a factor's levels."""
    column = view.columns[factor.name]
    sql = factor.codes if factor.of_rows else factor.codes.format(column.sql)
    return Column(sql, column.needs, column.joins)


EVERYTHING = "all events"
FINE = 4
"""Ages for decay curves are cut so many times in a doubling of (1 minute + age)..."""
BINS = 26 * FINE
"""... up to about a century."""
WIDE = 2
"""Fine ages that make one age of a window."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Sums of one group of events, a level of a factor or all.

    Attributes:
        factor: Its name; `EVERYTHING` for all events.
        level: Its name, empty for all events.
        totals: (P, K) scores added up, by part of the users and age, K `BINS`.
        events: (P, K) how many.
        ages: (K,) mean age in seconds, nan where there is no event.
        window_totals: (P, W, C) the same by window of the prediction and age, C wider ages.
        window_events: (P, W, C) how many.
    """

    factor: str
    level: str
    totals: FloatArray
    events: FloatArray
    ages: FloatArray
    window_totals: FloatArray
    window_events: FloatArray


def gather_cells(
    view: InfluenceView,
    factors: Sequence[Factor],
    windows: Windows,
    *,
    response: Response = "score",
    match: str | None = None,
) -> Iterator[Cells]:
    """The pass; then all events, and each level that occurs, in order.

    Args:
        view: The tables.
        factors: Whose levels are told apart.
        windows: Of the time of the prediction: the last event of the history.
        response: ``size`` drops the sign of scores.
        match: Which events speak for the target (`llm_influence.analysis.parts.speaking`).
    """
    flags = ["by_window", *(f"f{place}" for place in range(len(factors)))]
    query = _query(view, factors, windows, response, match)
    found = view.table(query)
    own = {name: found[f"of_{name}"].to_numpy() == 0 for name in flags}
    grouped = sum(own[name].astype(int) for name in flags[1:])
    everything = np.asarray(grouped) == 0 if len(factors) else np.ones(len(found), dtype=bool)
    yield _cells(found, everything, own["by_window"], (EVERYTHING, ""), windows)
    for place, factor in enumerate(factors):
        codes = found[f"f{place}"].fill_null(0).to_numpy()
        for code, level in enumerate(factor.levels):
            rows = own[f"f{place}"] & (codes == code)
            if rows.any():
                yield _cells(found, rows, own["by_window"], (factor.name, level), windows)


def _query(
    view: InfluenceView,
    factors: Sequence[Factor],
    windows: Windows,
    response: Response,
    match: str | None,
) -> str:
    plain = ["user", "age_seconds", "last_time", "score", *([match] if match else [])]
    taken: dict[str, Column] = {
        **{"side" if name == match else name: view.columns[name] for name in plain},
        **{f"f{place}": coded_column(view, factor) for place, factor in enumerate(factors)},
    }
    codes = [f"f{place}" for place in range(len(factors))]
    side = speaking(view, match)
    score = f"abs(score * {side})" if response == "size" else f"score * {side}"
    fine = f"least(floor({FINE} * log2(1 + age_seconds / {MINUTE})), {BINS - 1})::INTEGER"
    events = (
        f'SELECT "user" % {PARTS} AS part, age_seconds AS age, {fine} AS fine, '
        f"{fine} // {WIDE} AS old, "
        f"{windows.sql.format('last_time')} AS by_window, {score} AS score"
        + "".join(f", {name}" for name in codes)
        + f" FROM ({select(taken, parts=view.parts)}) WHERE {side} IS NOT NULL"
    )
    sets = ", ".join(
        f"({', '.join([*cut, *own])})"
        for own in ([], *([name] for name in codes))
        for cut in (("part", "fine"), ("part", "by_window", "old"))
    )
    flags = "".join(f", grouping({name}) AS of_{name}" for name in ("by_window", *codes))
    return (
        f"SELECT part, fine, by_window, old{''.join(f', {name}' for name in codes)}{flags}, "
        f"{total('score')} AS total, count(*) AS events, sum(age)::DOUBLE AS age "
        f"FROM ({events}) GROUP BY GROUPING SETS ({sets})"
    )


def _cells(
    found: pa.Table,
    rows: np.ndarray,
    by_window: np.ndarray,
    name: tuple[str, str],
    windows: Windows,
) -> Cells:
    fine, wide = found.filter(pa.array(rows & ~by_window)), found.filter(pa.array(rows & by_window))
    shape = (PARTS, BINS)
    events = _dense(fine, ("part", "fine"), "events", shape)
    ages = _dense(fine, ("part", "fine"), "age", shape).sum(axis=0)
    count = events.sum(axis=0)
    cut = (PARTS, len(windows.starts), BINS // WIDE)
    by = ("part", "by_window", "old")
    return Cells(
        *name,
        _dense(fine, ("part", "fine"), "total", shape),
        events,
        np.divide(ages, count, out=np.full(BINS, np.nan), where=count > 0),
        _dense(wide, by, "total", cut),
        _dense(wide, by, "events", cut),
    )


def _dense(table: pa.Table, by: Iterable[str], values: str, shape: tuple[int, ...]) -> FloatArray:
    filled = np.zeros(shape)
    filled[tuple(table[name].to_numpy() for name in by)] = table[values].to_numpy()
    return filled
