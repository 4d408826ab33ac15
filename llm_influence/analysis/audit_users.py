"""Numbers of each user for the audit: what they did, what they got, how much influence it had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from llm_influence.analysis.columns import beside, exact_mean, exact_sum, sql_name
from llm_influence.analysis.levels import MOST_LEVELS, OTHER, UNKNOWN, Factor, factor_of, factors_of
from llm_influence.analysis.output import Record
from llm_influence.analysis.statistics import divide, mean_interval
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from llm_influence.influence.table_files import FAIRNESS_TEST, read_fairness_test
from llm_influence.types import FloatArray, IntArray

MOST_ITEMS = 300  # so many single items, those of the most users, may be proxies
LEAST_SHOWN = 10
"""A level that fewer users have, or get recommended, is too rare for a comparison of groups."""
RECENT = 3  # an event so many events back gets half the weight in facts about recent events
ITEM = "item_id"

_EXPLAINED = f"""
CREATE OR REPLACE TABLE audit_explained AS
SELECT x.user_code, x.chosen, r.*
FROM (SELECT explanation, any_value(prediction) AS prediction, any_value(full_value) AS full_value,
        any_value(lds) AS lds, {exact_sum("abs(score)")} AS size,
        bool_or(position IS NULL) AS has_user,
        coalesce({exact_sum("abs(score)", "position IS NULL")}, 0) AS user_size,
        coalesce({exact_sum("score", "position IS NULL")}, 0) AS user_score
    FROM influence_rows GROUP BY explanation) AS r
JOIN explanations AS x USING (explanation)
"""
_EVENTS = f"""
CREATE OR REPLACE TABLE audit_events AS
SELECT x.user_code, r.explanation, r.position, any_value(r.item_id) AS item_id,
    any_value(r.behavior) AS behavior, any_value(r.value) AS value,
    abs({exact_sum("r.score")}) AS size,
    0.5 ** (any_value(x.events - 1 - r.position) / {RECENT}.0) AS late
FROM influence_rows AS r JOIN explanations AS x USING (explanation)
WHERE r.position IS NOT NULL GROUP BY ALL
"""
_ITEMS = """
CREATE OR REPLACE TABLE audit_items AS
SELECT item_id, count(DISTINCT user_code)::DOUBLE AS users FROM audit_events GROUP BY item_id
"""
_TOP = f"""
CREATE OR REPLACE TABLE audit_top AS
SELECT item_id, row_number() OVER (ORDER BY users DESC, item_id) - 1 AS place FROM audit_items
WHERE users >= {LEAST_SHOWN} ORDER BY place LIMIT {MOST_ITEMS}
"""
_JOINED = (
    "FROM audit_events AS e LEFT JOIN items AS i ON i.item_id = e.item_id "
    "LEFT JOIN audit_top AS t ON t.item_id = e.item_id"
)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Events sorted by a behaviour, a column of the item table, or the item itself."""

    name: str  # ``behavior``, ``item:genres``, ``item_id``
    levels: tuple[str, ...]  # (L,) names
    counts: FloatArray  # (U, L) number of events of each user
    sizes: FloatArray  # (U, L) summed sizes of their influence
    # (U, L) number of events, with half the weight for every `RECENT` events further back
    late: FloatArray
    sql: str  # Code of the level over an event ``e`` and its item ``i``; null for no level

    def ranks(self, users: IntArray) -> FloatArray:
        """(n, L) ranks of users with mean 0 and length 1; all 0 for a level that is too rare.

        Users are ranked by the level's share of their events; for single items by whether the item
        occurs.
        """
        counts = self.counts[users]
        amounts: FloatArray = (counts > 0).astype(np.float64)
        if self.name != ITEM:
            amounts = divide(counts, counts.sum(axis=1, keepdims=True), none=0.0)
        ranks = stats.rankdata(amounts, axis=0) - (len(amounts) + 1) / 2
        lengths = np.linalg.norm(ranks, axis=0)
        lengths[(counts > 0).sum(axis=0) < LEAST_SHOWN] = 0.0
        return divide(ranks, lengths, none=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """One number per user, in which groups are compared."""

    # ``exposure`` (what is recommended), ``quality`` (of the recommendation) or ``direct``
    # (influence of the user's features)
    kind: str
    name: str  # Name in reports
    values: FloatArray  # (U,) numbers, nan where unknown


class AuditUsers:
    """The U users of a view, read once for any number of sensitive features.

    All sums but those by user stay in the database. ``left_out`` says what cannot be compared and
    why; ``facts`` are (U, q) facts of each user's history; ``has_user`` is true if the users'
    features have scores of their own.
    """

    def __init__(self, view: InfluenceView) -> None:
        self.view = view
        for statement in (_EXPLAINED, _EVENTS, _ITEMS, _TOP):
            view.execute(statement)
        items = [name for name in view.columns if name.startswith("item:")]
        self._items, self.left_out = factors_of(view, items, required=False)
        self._done, _ = factors_of(view, ("behavior", "value"), required=False)
        self.kinds = [self._kind(f.name, f.levels, _place(f)) for f in (*self._done, *self._items)]
        top = view.table("SELECT item_id FROM audit_top ORDER BY place")["item_id"].to_pylist()
        self.kinds.append(self._kind(ITEM, tuple(top), "t.place"))
        averages = ", ".join(  # may be nan, and so cannot be exact sums
            f"avg({column} ORDER BY explanation) AS {column}"
            for column in ("prediction", "full_value", "lds", "user_score")
        )
        self._columns = self._by_user(
            f"{averages}, {exact_sum('user_size')} AS user_size, {exact_sum('size')} AS size, "
            "bool_and(has_user) AS has_user FROM audit_explained"
        )
        self.has_user = bool(self._columns["has_user"].all())
        self.measures = [measure for measure in self._measures() if self._varies(measure)]
        self.facts = self._facts()

    def groups(self, feature: str) -> tuple[tuple[str, ...], IntArray]:
        """Levels of a user feature, and (U,) codes of users; -1 for unknown."""
        factor = factor_of(self.view, feature)
        if isinstance(factor, str):
            raise TypeError(f"a required column is always cut into levels: {factor}")
        users = self.view.table(
            f"SELECT {factor.of_table('u')} AS code FROM user_codes AS c "
            "LEFT JOIN users AS u ON u.user_id = c.user_id ORDER BY c.user_code"
        )
        codes = users["code"].to_numpy().astype(np.int64)
        if UNKNOWN in factor.levels:
            codes = np.where(codes == factor.levels.index(UNKNOWN), -1, codes)
        return factor.levels, codes

    def user_shares(self) -> FloatArray:
        """(U,) share of the users' features in the size of all influence."""
        return divide(self._columns["user_size"], self._columns["size"], none=0.0)

    def shares(self, kind: Kind) -> FloatArray:
        """(U, L) share of events of each level in the size of all influence."""
        return divide(kind.sizes, self._columns["size"][:, None], none=0.0)

    def weighted(self, weights: dict[str, FloatArray]) -> FloatArray:
        """(U,) share of influence where each event has the largest of its levels' ``weights``."""
        listed = [
            f"coalesce({[float(w) for w in weights[kind.name]]}[{kind.sql} + 1], 0)"
            for kind in self.kinds
        ]
        through = exact_sum(f"e.size * greatest({', '.join(listed)})")
        weighted = self._by_user(f"{through} AS through {_JOINED}")["through"]
        return divide(weighted, self._columns["size"], none=0.0)

    def _by_user(self, query: str) -> dict[str, FloatArray]:
        """Columns of a query that is grouped by user, in order of the users' codes."""
        table = self.view.table(f"SELECT user_code, {query} GROUP BY user_code ORDER BY user_code")
        return {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}

    def _kind(self, name: str, levels: tuple[str, ...], sql: str) -> Kind:
        cells = self.view.table(
            f"SELECT user_code, code, count(*)::DOUBLE AS counts, {exact_sum('size')} AS sizes, "
            f"{exact_sum('late')} AS late "
            f"FROM (SELECT e.user_code, e.size, e.late, {sql} AS code {_JOINED}) "
            "WHERE code IS NOT NULL GROUP BY ALL"
        )
        where = (cells["user_code"].to_numpy(), cells["code"].to_numpy().astype(np.int64))
        sums = np.zeros((3, self.view.users, len(levels)))
        for matrix, column in zip(sums, ("counts", "sizes", "late"), strict=True):
            matrix[where] = cells[column].to_numpy()
        return Kind(name, levels, sums[0], sums[1], sums[2], sql)

    def _facts(self) -> FloatArray:
        """Shares of events by level, recent events by level, number and popularity of the items.

        Recent events are also counted by pairs of an item column and behaviour or value, because
        models read these together.
        """
        events = self._by_user(
            f"count(*)::DOUBLE AS events, {exact_mean('ln(1 + a.users)')} AS popularity "
            "FROM audit_events AS e JOIN audit_items AS a USING (item_id)"
        )
        kinds = [kind for kind in self.kinds if kind.name != ITEM]
        pairs = [self._pair(done, item) for done in self._done for item in self._items]
        count = events["events"]
        columns: list[FloatArray] = [kind.counts / count[:, None] for kind in kinds]
        columns += [kind.late for kind in (*kinds, *pairs)]
        return np.column_stack([*columns, np.log(count), events["popularity"]])

    def _pair(self, done: Factor, item: Factor) -> Kind:
        levels = tuple(f"{a}, {b}" for a in done.levels for b in item.levels)
        sql = f"({_place(done)}) * {len(item.levels)} + ({_place(item)})"
        return self._kind(f"{done.name} x {item.name}", levels, sql)

    def _measures(self) -> list[Measure]:
        names = {
            "prediction": "probability of the target",
            "full_value": "value of the target",
            "lds": "linear fidelity",
        }
        measures = self._exposure()
        measures += [Measure("quality", text, self._columns[key]) for key, text in names.items()]
        if self.has_user:
            score = self._columns["user_score"]
            measures.append(Measure("direct", "influence of the user's features", score))
        return measures

    def _exposure(self) -> list[Measure]:
        known = self.view.table("SELECT count(chosen) AS known FROM audit_explained")
        if known["known"][0].as_py() < self.view.explanations:
            self.left_out["exposure"] = "targets that are no items"
            return []
        codes = "".join(f", {_place(f)} AS {sql_name(f.name)}" for f in self._items)
        table = self.view.table(
            f"SELECT x.user_code, ln(1 + coalesce(a.users, 0)) AS popularity{codes} "
            "FROM audit_explained AS x LEFT JOIN items AS i ON i.item_id = x.chosen "
            "LEFT JOIN audit_items AS a ON a.item_id = x.chosen ORDER BY x.user_code"
        )
        user = table["user_code"].to_numpy()

        def mean(values: np.ndarray) -> FloatArray:
            return np.bincount(user, weights=values) / np.bincount(user)

        popularity = mean(table["popularity"].to_numpy())
        measures = [Measure("exposure", "popularity of what is recommended", popularity)]
        for factor in self._items:
            code = table[factor.name].to_numpy()
            for place, level in enumerate(factor.levels):
                share = mean(code == place)
                if (share > 0).sum() >= LEAST_SHOWN and level not in (UNKNOWN, OTHER):
                    name = f"{factor.name.partition(':')[2]} {level} recommended"
                    measures.append(Measure("exposure", name, share))
        return measures

    def _varies(self, measure: Measure) -> bool:
        known = measure.values[~np.isnan(measure.values)]
        if len(known) < len(measure.values):
            self.left_out[measure.name] = "unknown for some users"
        elif np.ptp(known) <= 1e-9 * (1 + np.abs(known).max()):
            self.left_out[measure.name] = "equal for all users"
        return measure.name not in self.left_out


def large_groups(feature: str, levels: tuple[str, ...], codes: IntArray, least: int) -> IntArray:
    """Codes of the levels that have at least ``least`` users."""
    sizes = np.bincount(codes[codes >= 0], minlength=len(levels))[: len(levels)]
    kept = np.flatnonzero(sizes >= least)
    if len(kept) < 2:
        listed = ", ".join(f"{level}: {size}" for level, size in zip(levels, sizes, strict=True))
        raise DataError(
            f"groups of users by size: {listed}",
            where=feature,
            expected=f"at least two groups with at least {least} users each",
            fix="explain more users, or join small groups in the user table",
        )
    return kept


def _place(factor: Factor) -> str:
    """SQL of a level's code over an event ``e`` or its item ``i``."""
    return factor.of_table("i" if factor.name.startswith("item:") else "e")


def interval_record(name: str, values: FloatArray | None) -> Record:
    """A mean over users with the ends of its interval, as columns of a record."""
    interval = (None, None, None) if values is None else mean_interval(values)
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


# --- counterfactual fairness test ------------------------------------------------------------

ANY = "any"  # stands for all values of a feature with many values


@dataclass(frozen=True, slots=True)
class FairnessTest:
    """The counterfactual fairness test of one feature, over users whose value is known."""

    users: int  # Number of users
    changed: float  # Share of users whose first recommendation changes with another value
    p_value: float  # Probability of so many changes if no more than the tolerated share can change
    pairs: list[Record]  # One record per pair of values


def find_fairness_test(sources: Sequence[Path]) -> pa.Table | None:
    """The counterfactual fairness test beside influence tables, or None."""
    files = beside(sources, FAIRNESS_TEST)
    if len(files) > 1:
        raise DataError(
            f"several fairness tests: {', '.join(map(str, files))}",
            where="influence tables",
            expected="one fairness test, or none",
            fix="audit the tables one by one",
        )
    return read_fairness_test(files[0]) if files else None


def fairness_test_of(table: pa.Table, feature: str, tolerated: float) -> FairnessTest | None:
    """The result for one feature, without ``user:``; None if it was not tested."""
    rows = table.filter(pc.equal(table["feature"], feature))
    if not len(rows):
        return None
    users, user = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    changed = np.zeros(len(users), dtype=bool)
    np.logical_or.at(changed, user, rows["changed"].to_numpy(zero_copy_only=False))
    test = stats.binomtest(int(changed.sum()), len(users), tolerated, alternative="greater")
    values, others = (np.array(rows[name].to_pylist()) for name in ("value", "other"))
    if len(np.unique(values)) > MOST_LEVELS:
        values = np.full(len(values), ANY)
    columns = {
        "changed": rows["changed"].to_numpy(zero_copy_only=False).astype(np.float64),
        "kept": rows["kept"].to_numpy(),
        "log_odds_moved": rows["log_odds_other"].to_numpy() - rows["log_odds"].to_numpy(),
    }
    pairs = []
    for value, other in sorted(set(zip(values.tolist(), others.tolist(), strict=True))):
        own = (values == value) & (others == other)
        record: Record = {"feature": f"user:{feature}", "value": value, "other": other}
        record["users"] = int(own.sum())
        for name, column in columns.items():
            record |= interval_record(name, column[own])
        pairs.append(record)
    return FairnessTest(len(users), float(changed.mean()), float(test.pvalue), pairs)
