"""Before and after: what changed between two sets of influence tables.

Of two models, or of two periods. Explanations of the same user, target and moment are paired, and
in these the events that both hold; the change of a level is then the mean difference of the same
events. Events without a partner are compared too, as means of two samples. Users are dealt
into parts by their name, the same in both tables, and parts are the units of standard errors
(`llm_influence.analysis.parts`), so a user who stands in both is no second witness.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_influence.analysis.bins import AGES, quoted
from llm_influence.analysis.columns import Column, select, total
from llm_influence.analysis.columns import mean as mean_of
from llm_influence.analysis.event_cells import EVERYTHING, Response, coded_column
from llm_influence.analysis.levels import Factor
from llm_influence.analysis.regression import holm
from llm_influence.analysis.statistics import (
    LEAST_PARTS,
    PARTS,
    correction,
    critical,
    p_value,
    speaking,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from llm_influence.types import FloatArray

MOST_ITEMS = 1000
"""Items are compared one by one, the most frequent."""
ITEM = "item"
PAIRED, UNPAIRED = "paired", "unpaired"

_KEY = ("user_id", "target", "target_id", "last_time")
"""What makes two explanations the same question."""
_SAME = ("item_id", "behavior", "timestamp", "again")
"""What makes two events the same; ``again`` counts those that are alike in all else."""

_EVENTS = """
SELECT explanation, user_id, target, target_id, last_time, item_id, title, behavior, timestamp, old,
    {codes}{score} AS score, row_number() OVER (
        PARTITION BY explanation, item_id, behavior, timestamp ORDER BY position) AS again
FROM ({source}) WHERE {side} IS NOT NULL
"""
_ASKED = """
CREATE TABLE {name}_asked AS
SELECT explanation, any_value(user_id) AS user_id, any_value(target) AS target,
    any_value(target_id) AS target_id, any_value(last_time) AS last_time
FROM {name}_events GROUP BY explanation
"""
_PAIRS = """
CREATE TABLE pairs AS SELECT a.explanation AS after_one, b.explanation AS before_one
FROM after_asked AS a JOIN before_asked AS b USING (user_id, target, target_id, last_time)
"""
_BOTH = """
CREATE TABLE both_events AS
WITH a AS (SELECT e.*, p.after_one AS pair FROM after_events AS e
        LEFT JOIN pairs AS p ON p.after_one = e.explanation),
    b AS (SELECT e.*, p.after_one AS pair FROM before_events AS e
        LEFT JOIN pairs AS p ON p.before_one = e.explanation)
SELECT (md5_number_lower(coalesce(a.user_id, b.user_id)) % {parts})::INTEGER AS part,
    coalesce(a.item_id, b.item_id) AS item_id, coalesce(a.title, b.title) AS title,
    coalesce(a.old, b.old) AS old, {codes}
    (a.score IS NOT NULL AND b.score IS NOT NULL)::INTEGER AS matched,
    a.score AS after, b.score AS before
FROM a FULL JOIN b ON {on}
"""
_SUMS = (
    f"coalesce({total('after')}, 0) AS after, coalesce({total('before')}, 0) AS before, "
    "count(after) AS after_events, count(before) AS before_events"
)


@dataclass(frozen=True, slots=True)
class Moved:
    """A level, before and after.

    Attributes:
        factor: A factor; `EVERYTHING`, ``age`` or `ITEM`.
        level: Its level; of an item the id.
        title: Of an item.
        how: `PAIRED`: the same events; `UNPAIRED`: events of one table alone.
        events: After; where paired, both.
        before: Mean influence.
        after: Mean influence.
        change: Their difference.
        low: The lower end of its 95% interval.
        high: The upper end.
        p_value: Of no change.
        p_holm: For all levels, or all items, together.
        moved: It is more than chance.
    """

    factor: str
    level: str
    title: str
    how: str
    events: int
    before: float
    after: float
    change: float
    low: float
    high: float
    p_value: float
    p_holm: float = float("nan")
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of tables, compared.

    Attributes:
        facts: How much of them was paired, and how alike paired scores are.
        rows: Every level and item that both have.
    """

    facts: dict[str, Any]
    rows: tuple[Moved, ...]

    def moved(self, alpha: float) -> list[Moved]:
        """All rows with Holm's p-values, of levels and of items; the surest items first."""
        levels = [row for row in self.rows if row.factor != ITEM]
        items = [row for row in self.rows if row.factor == ITEM]
        found: list[Moved] = []
        for family in (levels, items):
            p_values = holm([row.p_value for row in family])
            for row, p in zip(family, p_values, strict=True):
                found.append(replace(row, p_holm=float(p), moved=bool(p <= alpha)))
        return found[: len(levels)] + sorted(
            found[len(levels) :], key=lambda row: (row.p_value, -abs(row.change), row.level)
        )


def compare(
    after: InfluenceView,
    before: InfluenceView,
    factors: Sequence[Factor],
    response: Response = "score",
    match: str | None = None,
) -> Comparison:
    """Pair what can be paired, and compare.

    Args:
        after: The later tables, or the new model's.
        before: The earlier ones.
        factors: Of ``after``, whose levels are compared; in ``before`` they are looked up by name,
            and where it has no such column only paired events have levels.
        response: ``size`` drops the sign of scores.
        match: Which events speak for the target (`llm_influence.analysis.parts.speaking`).

    Raises:
        DataError: Their methods, units or kinds of target differ, one holds an explanation twice,
            or nothing in them can be compared.
    """
    _refuse_different(after, before)
    with tempfile.TemporaryDirectory(dir=after.folder) as folder:
        file = Path(folder) / "before.parquet"
        query = _events(before, factors, response, match)
        before.execute(f"COPY ({query}) TO {quoted(str(file))} (FORMAT parquet)")
        after.execute(f"CREATE TABLE after_events AS {_events(after, factors, response, match)}")
        after.execute(
            f"CREATE VIEW before_events AS SELECT * FROM read_parquet({quoted(str(file))})"
        )
        try:
            return _compared(after, factors)
        finally:
            for name in ("both_events", "pairs", "before_asked", "after_asked", "after_events"):
                after.execute(f"DROP TABLE IF EXISTS {name}")
            after.execute("DROP VIEW before_events")


def _refuse_different(after: InfluenceView, before: InfluenceView) -> None:
    kinds = [
        ", ".join(
            view.table("SELECT DISTINCT target FROM influence_rows ORDER BY 1")[
                "target"
            ].to_pylist()
        )
        for view in (after, before)
    ]
    asked = (
        ("method", after.method, before.method),
        ("units", after.units, before.units),
        ("target", *kinds),
    )
    for name, one, other in asked:
        if one != other:
            raise DataError(
                f"{name} {one} here, {other} in the tables to compare with",
                where="--against",
                expected=f"the same {name}: scores of different ones have different meanings",
                fix="choose what both have with --method and --target, or explain again",
            )


def _events(
    view: InfluenceView, factors: Sequence[Factor], response: Response, match: str | None
) -> str:
    side = speaking(view, match)
    score = f"score * {side}"
    names = [*_KEY, "explanation", "item_id", "title", "behavior", "timestamp", "position", "score"]
    taken: dict[str, Column] = {name: view.columns[name] for name in names}
    taken["old"] = Column(AGES.codes_sql(view.columns["age_seconds"].sql), ("timestamp",))
    if match is not None:
        taken["side"] = view.columns[match]
    codes = ""
    for place, factor in enumerate(factors):
        if factor.name in view.columns:
            taken[f"f{place}"] = coded_column(view, factor)
            codes += f"f{place}::INTEGER AS f{place}, "
        else:
            codes += f"NULL::INTEGER AS f{place}, "
    return _EVENTS.format(
        codes=codes,
        score=f"abs({score})" if response == "size" else score,
        source=select(taken, parts=view.parts),
        side=side,
    )


def _compared(view: InfluenceView, factors: Sequence[Factor]) -> Comparison:
    for name in ("after", "before"):
        view.execute(_ASKED.format(name=name))
        _refuse_twice(view, name)
    view.execute(_PAIRS)
    names = [f"f{place}" for place in range(len(factors))]
    view.execute(
        _BOTH.format(
            parts=PARTS,
            codes="".join(f"coalesce(a.{name}, b.{name}) AS {name}, " for name in names),
            on=" AND ".join(f"a.{name} = b.{name}" for name in ("pair", *_SAME)),
        )
    )
    levels = [
        ("old", "age", AGES.names),
        *((f"f{n}", f.name, f.levels) for n, f in enumerate(factors)),
    ]
    rows = [*_of_levels(view, levels), *_of_items(view)]
    if not rows:
        raise DataError(
            "no events, levels or items of enough users are in both tables",
            where="--against",
            expected=f"something that {LEAST_PARTS} users or more did in both",
            fix="compare tables of the same users, or of the same behaviours and items",
        )
    return Comparison(_facts(view), tuple(rows))


def _refuse_twice(view: InfluenceView, name: str) -> None:
    keys = ", ".join(_KEY)
    twice = view.table(
        f"SELECT user_id FROM {name}_asked GROUP BY {keys} HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    )
    if len(twice):
        raise DataError(
            f"user {twice['user_id'][0].as_py()!r} is explained twice, at the same moment for the "
            "same target",
            where="--against" if name == "before" else "influence tables",
            expected="each explanation once, so that it has one partner",
            fix="choose a run with --run, or leave one of the tables out",
        )


def _facts(view: InfluenceView) -> dict[str, Any]:
    products = ("after", "before", "after * after", "before * before", "after * before")
    sums = [f"{total(product, 'matched = 1')} AS s{n}" for n, product in enumerate(products)]
    (found,) = view.table(
        "SELECT (SELECT count(*) FROM pairs) AS paired_explanations, "
        "coalesce(sum(matched), 0)::BIGINT AS paired_events, "
        "count(*) FILTER (before IS NULL) AS only_after, "
        "count(*) FILTER (after IS NULL) AS only_before, "
        f"{mean_of('abs(after - before)')} AS mean_size_of_change, {', '.join(sums)} "
        "FROM both_events"
    ).to_pylist()
    a, b, aa, bb, ab = (found.pop(f"s{n}") or 0.0 for n in range(len(products)))
    count = found["paired_events"]
    spread = (count * aa - a * a) * (count * bb - b * b)
    found["correlation"] = (count * ab - a * b) / math.sqrt(spread) if spread > 0 else None
    return dict(found)


def _of_levels(
    view: InfluenceView, levels: Sequence[tuple[str, str, Sequence[str]]]
) -> Iterator[Moved]:
    sets = ", ".join(["(part, matched)", *(f"(part, matched, {column})" for column, *_ in levels)])
    flags = "".join(f", grouping({column}) AS of_{column}" for column, *_ in levels)
    columns = "".join(f", {column}" for column, *_ in levels)
    found = view.table(
        f"SELECT part, matched{columns}{flags}, {_SUMS} FROM both_events "
        f"GROUP BY GROUPING SETS ({sets})"
    )
    own = {column: found[f"of_{column}"].to_numpy() == 0 for column, *_ in levels}
    everything = ~np.any(list(own.values()), axis=0)
    yield from _moved(found.filter(pa.array(everything)), EVERYTHING, "", "")
    for column, factor, names in levels:
        codes = found[column].fill_null(-1).to_numpy()
        for code, level in enumerate(names):
            rows = found.filter(pa.array(own[column] & (codes == code)))
            yield from _moved(rows, factor, level, "")


def _of_items(view: InfluenceView) -> Iterator[Moved]:
    found = view.table(
        f"WITH often AS (SELECT item_id, min(title) AS title FROM both_events GROUP BY item_id "
        f"ORDER BY count(*) DESC, item_id LIMIT {MOST_ITEMS}) "
        f"SELECT item_id, o.title, part, matched, {_SUMS} FROM both_events AS e "
        "JOIN often AS o USING (item_id) GROUP BY item_id, o.title, part, matched ORDER BY item_id"
    )
    ids = found["item_id"].to_pylist()
    starts = [place for place in range(len(ids)) if not place or ids[place] != ids[place - 1]]
    for start, end in pairwise([*starts, len(ids)]):
        rows = found.slice(start, end - start)
        yield from _moved(rows, ITEM, ids[start], rows["title"][0].as_py() or "")


def _moved(rows: pa.Table, factor: str, level: str, title: str) -> Iterator[Moved]:
    """The level's paired events, and the others, where enough users have them."""
    matched = rows["matched"].to_numpy() == 1
    for how, own in ((PAIRED, matched), (UNPAIRED, ~matched)):
        part = rows["part"].to_numpy()[own]
        sums = {
            name: np.bincount(part, rows[name].to_numpy()[own], minlength=PARTS).astype(float)
            for name in ("after", "before", "after_events", "before_events")
        }
        counts = [sums["after_events"], sums["before_events"]]
        if min((count > 0).sum() for count in counts) >= LEAST_PARTS:
            yield _change(sums, (factor, level, title, how))


def _change(sums: dict[str, FloatArray], name: tuple[str, str, str, str]) -> Moved:
    after, before = (
        sums[side].sum() / sums[f"{side}_events"].sum() for side in ("after", "before")
    )
    added = np.zeros(PARTS)
    for side, mean, sign in (("after", after, 1), ("before", before, -1)):
        count = sums[f"{side}_events"]
        added += sign * (sums[side] - count * mean) / count.sum()
    parts = int((sums["after_events"] + sums["before_events"] > 0).sum())
    error = float(np.sqrt(correction(np.array(parts)) * (added**2).sum()))
    change, half = float(after - before), float(critical(parts)) * error
    return Moved(
        *name,
        events=int(sums["after_events"].sum()),
        before=float(before),
        after=float(after),
        change=change,
        low=change - half,
        high=change + half,
        p_value=p_value(change, error, parts),
    )
