"""Changes of influence: change points over calendar windows, and two sets of tables compared.

Drift follows the residual against the mean at each age, because histories of one window may be
older than those of another. Change points come from binary segmentation (Scott and Knott 1974;
Vostrikova 1981): the best split is kept if it is significant, and each side is split again. The
test draws signs of groups of users at random and takes the largest of all splits each time (the
wild bootstrap, Wu 1986; Westfall and Young 1993). Each side of a split gets half of its error
level, so all segments together keep it, and all cells share it evenly.

A comparison pairs explanations of the same user, target and time, and in these the events that
both hold: the change of a level is the mean difference of the same events. Other events are
compared as means of two samples. Users are dealt into groups by their name, the same in both
tables, so a user in both tables counts once.
"""

from __future__ import annotations

import glob
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_influence.analysis.columns import AGES, Column, exact_mean, exact_sum, select, sql_text
from llm_influence.analysis.levels import EVERYTHING, Cells, Factor, signed_score
from llm_influence.analysis.output import Record, with_interval
from llm_influence.analysis.statistics import (
    GROUPS,
    LEAST_GROUPS,
    critical,
    difference,
    divide,
    half_widths,
    holm,
    means,
    occupied,
    p_value,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import DynamicsOptions
from llm_influence.errors import DataError
from llm_influence.types import FloatArray

DRAWS = 19_999  # draws of random signs


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Some cells over W windows."""

    cells: Cells  # Sums of the events
    values: FloatArray  # (W,) mean influence at the usual ages of the cells; nan without events
    halves: FloatArray  # (W,) half the widths of 95% intervals; nan with too few users
    events: FloatArray  # (W,) numbers of events
    # Records of change points: the first ``window`` after it, mean influence ``before``
    # (since the previous change) and ``after`` (until the next), and their difference
    changes: list[Record]


def drift_of(cells: Cells, *, tests: int, alpha: float, seed: int) -> Drift:
    """Find the change points of some cells; ``alpha`` is shared by ``tests`` cells."""
    segments = _Segments(cells.window_totals, cells.window_events, seed)
    totals, events = segments.within(0, segments.windows)
    middle, error = means(totals, events)
    segments.search(0, segments.windows, alpha / tests)
    bounds = [0, *sorted(segments.p_values), segments.windows]
    triples = zip(bounds, bounds[1:], bounds[2:], strict=False)
    changes = [segments.change(*triple, tests) for triple in triples]
    values = cells.totals.sum() / cells.events.sum() + middle
    return Drift(cells, values, half_widths(error, occupied(events)), events.sum(axis=0), changes)


class _Segments:
    """Binary segmentation of windows, from (G, W, C) sums by group of users, window and age."""

    def __init__(self, totals: FloatArray, events: FloatArray, seed: int) -> None:
        self._totals, self._events, self.windows = totals, events, totals.shape[1]
        signs = np.random.default_rng(seed).integers(0, 2, size=(DRAWS, len(totals)))
        self._signs = signs * 2.0 - 1
        self.p_values: dict[int, float] = {}

    def within(self, first: int, end: int) -> tuple[FloatArray, FloatArray]:
        """(G, w) residuals against the mean at each age, and events, of some windows."""
        totals, events = self._totals[:, first:end], self._events[:, first:end]
        usual = divide(totals.sum(axis=(0, 1)), events.sum(axis=(0, 1)))
        return totals.sum(axis=2) - events @ np.nan_to_num(usual), events.sum(axis=2)

    def search(self, first: int, end: int, alpha: float, halvings: int = 0) -> None:
        """Split the windows from ``first`` to before ``end``, and both sides again."""
        if end - first < 2:
            return
        sums = np.stack(self.within(first, end))
        left = sums.cumsum(axis=2)[..., :-1]  # of the windows before each split
        right = sums.sum(axis=2, keepdims=True) - left
        enough = np.minimum(occupied(left[1]), occupied(right[1])) >= LEAST_GROUPS
        if not enough.any() or not sums[0].any():
            return
        places = np.flatnonzero(enough)
        split, p = self._test(*left[..., places], *right[..., places])
        if p <= alpha:
            middle = first + 1 + int(places[split])
            self.p_values[middle] = p * 2**halvings
            self.search(first, middle, alpha / 2, halvings + 1)
            self.search(middle, end, alpha / 2, halvings + 1)

    def _test(
        self, t_left: FloatArray, n_left: FloatArray, t_right: FloatArray, n_right: FloatArray
    ) -> tuple[int, float]:
        """The best split, and the p-value of no change."""
        mean = (t_left + t_right).sum(axis=0) / (n_left + n_right).sum(axis=0)
        below, above = n_left.sum(axis=0), n_right.sum(axis=0)
        # The part of each group of users in the difference, if there is no change.
        added = (t_right - n_right * mean) / above - (t_left - n_left * mean) / below
        gain = added.sum(axis=0) ** 2 * below * above / (below + above)
        scale = np.sqrt((added**2).sum(axis=0))
        scaled = divide(added, scale, none=0.0)
        largest = np.abs(scaled.sum(axis=0)).max()
        drawn = np.abs(self._signs @ scaled).max(axis=1)
        # Sums in another order differ in their last digits: almost equal counts as equal.
        p = (1 + (drawn >= largest * (1 - 1e-9)).sum()) / (1 + len(drawn))
        return int(gain.argmax()), float(p)

    def change(self, first: int, window: int, end: int, tests: int) -> Record:
        """The change at a window, between the change before it and the next one."""
        sums, cut = np.stack(self.within(first, end)), window - first
        totals, events = np.stack([sums[..., :cut].sum(axis=2), sums[..., cut:].sum(axis=2)], 1)
        before, after, error, groups = difference(totals, events)
        level = self._totals[:, first:end].sum() / self._events[:, first:end].sum()
        return {
            "window": window,
            "before": level + before,
            "after": level + after,
            **with_interval("change", after - before, float(critical(groups)) * error),
            "p_corrected": min(1.0, self.p_values[window] * tests),
        }


# --- two sets of tables ----------------------------------------------------------------------

MOST_ITEMS = 1000  # so many of the most frequent items are compared one by one
ITEM = "item"

_KEY = ("user_id", "target", "target_id", "last_time")  # the same for a pair of explanations
_SAME = ("item_id", "behavior", "timestamp", "again")  # and of events; "again" numbers equal ones

_EVENTS = """
SELECT explanation, user_id, target, target_id, last_time, item_id, title, behavior, timestamp, old,
    {codes}{score} AS score, row_number() OVER (
        PARTITION BY explanation, item_id, behavior, timestamp ORDER BY position) AS again
FROM ({source}) WHERE {sign} IS NOT NULL
"""
_EXPLAINED = f"(SELECT DISTINCT explanation, {', '.join(_KEY)} FROM {{}}_events)"
_PAIRS = f"""
CREATE TABLE pairs AS SELECT a.explanation AS after_one, b.explanation AS before_one
FROM {_EXPLAINED.format("after")} AS a
JOIN {_EXPLAINED.format("before")} AS b USING ({", ".join(_KEY)})
"""
_BOTH = """
CREATE TABLE both_events AS
WITH a AS (SELECT e.*, p.after_one AS pair FROM after_events AS e
        LEFT JOIN pairs AS p ON p.after_one = e.explanation),
    b AS (SELECT e.*, p.after_one AS pair FROM before_events AS e
        LEFT JOIN pairs AS p ON p.before_one = e.explanation)
SELECT (md5_number_lower(coalesce(a.user_id, b.user_id)) % {groups})::INTEGER AS part,
    coalesce(a.item_id, b.item_id) AS item_id, coalesce(a.title, b.title) AS title,
    coalesce(a.old, b.old) AS old, {codes}
    (a.score IS NOT NULL AND b.score IS NOT NULL)::INTEGER AS matched,
    a.score AS after, b.score AS before
FROM a FULL JOIN b ON {on}
"""
_SUMS = (
    f"coalesce({exact_sum('after')}, 0) AS after, coalesce({exact_sum('before')}, 0) AS before, "
    "count(after) AS after_events, count(before) AS before_events"
)


def compare(
    after: InfluenceView,
    before: InfluenceView,
    factors: Sequence[Factor],
    options: DynamicsOptions | None = None,
) -> tuple[dict[str, Any], list[Record]]:
    """Pair explanations and events of two sets of tables, and test every level and item.

    ``factors`` are those of ``after``; where ``before`` has no such column, only paired events have
    levels.

    Returns:
        How much was paired and how similar paired scores are; and one record per level or item
        that both tables have, the most significant items first.
    """
    options = options or DynamicsOptions()
    _check_alike(after, before)
    with tempfile.TemporaryDirectory(dir=after.folder) as folder:
        file = sql_text(str(Path(folder) / "before.parquet"))
        read = sql_text(glob.escape(str(Path(folder) / "before.parquet")))
        query = _events(before, factors, options)
        before.execute(f"COPY ({query}) TO {file} (FORMAT parquet)")
        after.execute(f"CREATE TABLE after_events AS {_events(after, factors, options)}")
        after.execute(f"CREATE VIEW before_events AS SELECT * FROM read_parquet({read})")
        try:
            rows = _compared(after, factors)
            facts = _pairing(after)
        finally:
            for name in ("both_events", "pairs", "after_events"):
                after.execute(f"DROP TABLE IF EXISTS {name}")
            after.execute("DROP VIEW before_events")
    levels = [row for row in rows if row["factor"] != ITEM]
    items = [row for row in rows if row["factor"] == ITEM]
    for family in (levels, items):
        for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row |= {"p_holm": float(p), "moved": bool(p <= options.alpha)}
    items.sort(key=lambda row: (row["p_value"], -abs(row["change"]), row["level"]))
    return facts, levels + items


def _check_alike(after: InfluenceView, before: InfluenceView) -> None:
    query = "SELECT string_agg(DISTINCT target, ', ' ORDER BY target) AS kinds FROM influence_rows"
    kinds = [view.table(query)["kinds"][0].as_py() for view in (after, before)]
    pairs = {"method": (after.method, before.method), "units": (after.units, before.units)}
    for name, (one, other) in {**pairs, "target": kinds}.items():
        if one != other:
            raise DataError(
                f"{name} {one} here, {other} in the tables to compare with",
                where="--against",
                expected=f"the same {name}: scores of different ones have different meanings",
                fix="choose what both have with --method and --target, or explain again",
            )


def _events(view: InfluenceView, factors: Sequence[Factor], options: DynamicsOptions) -> str:
    score, sign = signed_score(view, options)
    names = [*_KEY, "explanation", "item_id", "title", "behavior", "timestamp", "position", "score"]
    columns: dict[str, Column] = {name: view.columns[name] for name in names}
    columns["old"] = Column(AGES.codes_sql(view.columns["age_seconds"].sql), ("timestamp",))
    if options.match is not None:
        columns["side"] = view.columns[options.match]
    codes = ""
    for place, factor in enumerate(factors):
        known = factor.name in view.columns
        if known:
            columns[f"f{place}"] = factor.column(view)
        codes += f"{f'f{place}' if known else 'NULL'}::INTEGER AS f{place}, "
    source = select(columns, parts=view.parts)
    return _EVENTS.format(codes=codes, score=score, source=source, sign=sign)


def _compared(view: InfluenceView, factors: Sequence[Factor]) -> list[Record]:
    _check_once(view, "after", "influence tables")
    _check_once(view, "before", "--against")
    view.execute(_PAIRS)
    names = [f"f{place}" for place in range(len(factors))]
    codes = "".join(f"coalesce(a.{name}, b.{name}) AS {name}, " for name in names)
    same = " AND ".join(f"a.{name} = b.{name}" for name in ("pair", *_SAME))
    view.execute(_BOTH.format(groups=GROUPS, codes=codes, on=same))
    levels = {"old": ("age", AGES.names)}
    levels |= {name: (f.name, f.levels) for name, f in zip(names, factors, strict=True)}
    rows = [*_level_rows(view, levels), *_item_rows(view)]
    if not rows:
        raise DataError(
            "no events, levels or items of enough users are in both tables",
            where="--against",
            expected=f"events of the same kind by at least {LEAST_GROUPS} users in both tables",
            fix="compare tables of the same users, or of the same behaviours and items",
        )
    return rows


def _check_once(view: InfluenceView, name: str, where: str) -> None:
    twice = view.table(
        f"SELECT user_id FROM {_EXPLAINED.format(name)} GROUP BY {', '.join(_KEY)} "
        "HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    )
    if len(twice):
        raise DataError(
            f"user {twice['user_id'][0].as_py()!r} has two explanations of one target and time",
            where=where,
            expected="each explanation once",
            fix="choose a run with --run, or leave one of the tables out",
        )


def _pairing(view: InfluenceView) -> dict[str, Any]:
    products = ("after", "before", "after * after", "before * before", "after * before")
    sums = [f"{exact_sum(product, 'matched = 1')} AS s{n}" for n, product in enumerate(products)]
    (facts,) = view.table(
        "SELECT (SELECT count(*) FROM pairs) AS paired_explanations, "
        "coalesce(sum(matched), 0)::BIGINT AS paired_events, "
        "count(*) FILTER (before IS NULL) AS only_after, "
        "count(*) FILTER (after IS NULL) AS only_before, "
        f"{exact_mean('abs(after - before)')} AS mean_size_of_change, {', '.join(sums)} "
        "FROM both_events"
    ).to_pylist()
    a, b, aa, bb, ab = (facts.pop(f"s{n}") or 0.0 for n in range(len(products)))
    count = facts["paired_events"]
    spread = (count * aa - a * a) * (count * bb - b * b)
    facts["correlation"] = (count * ab - a * b) / math.sqrt(spread) if spread > 0 else None
    return dict(facts)


def _level_rows(
    view: InfluenceView, levels: dict[str, tuple[str, tuple[str, ...]]]
) -> Iterator[Record]:
    sets = ", ".join(["(part, matched)", *(f"(part, matched, {column})" for column in levels)])
    flags = "".join(f", grouping({column}) AS of_{column}" for column in levels)
    sums = view.table(
        f"SELECT part, matched{''.join(f', {column}' for column in levels)}{flags}, {_SUMS} "
        f"FROM both_events GROUP BY GROUPING SETS ({sets})"
    )
    own = {column: sums[f"of_{column}"].to_numpy() == 0 for column in levels}
    everything = ~np.any(list(own.values()), axis=0)
    yield from _records(sums.filter(pa.array(everything)), EVERYTHING, "", "")
    for column, (factor, names) in levels.items():
        codes = sums[column].fill_null(-1).to_numpy()
        for code, level in enumerate(names):
            rows = sums.filter(pa.array(own[column] & (codes == code)))
            yield from _records(rows, factor, level, "")


def _item_rows(view: InfluenceView) -> Iterator[Record]:
    sums = view.table(
        f"WITH often AS (SELECT item_id, min(title) AS title FROM both_events GROUP BY item_id "
        f"ORDER BY count(*) DESC, item_id LIMIT {MOST_ITEMS}) "
        f"SELECT item_id, o.title, part, matched, {_SUMS} FROM both_events AS e "
        "JOIN often AS o USING (item_id) GROUP BY item_id, o.title, part, matched ORDER BY item_id"
    )
    ids, starts = np.unique(sums["item_id"].to_numpy(), return_index=True)
    for item, start, end in zip(ids, starts, [*starts[1:], len(sums)], strict=True):
        rows = sums.slice(start, end - start)
        yield from _records(rows, ITEM, str(item), rows["title"][0].as_py() or "")


def _records(rows: pa.Table, factor: str, level: str, title: str) -> Iterator[Record]:
    """The change of the paired events, and of the others, where enough users have them."""
    matched, part = rows["matched"].to_numpy() == 1, rows["part"].to_numpy()
    for how, own in (("paired", matched), ("unpaired", ~matched)):
        sums = np.zeros((2, 2, GROUPS))  # of scores and of events; before and after
        for place, name in enumerate(("before", "after", "before_events", "after_events")):
            values = rows[name].to_numpy()[own]
            sums[divmod(place, 2)] = np.bincount(part[own], values, minlength=GROUPS)
        totals, events = sums
        if occupied(events.T).min() < LEAST_GROUPS:
            continue
        before, after, error, groups = difference(totals, events)
        yield {
            "factor": factor,
            "level": level,
            "title": title,
            "how": how,
            "events": int(events[1].sum()),
            "before": before,
            "after": after,
            **with_interval("change", after - before, float(critical(groups)) * error),
            "p_value": p_value(after - before, error, groups),
        }
