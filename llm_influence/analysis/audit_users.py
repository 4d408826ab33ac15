"""One row a user: what the tables say was done, what it got, and how much influence it carried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_influence.analysis.columns import mean, named, total
from llm_influence.analysis.levels import OTHER, UNKNOWN, Factor, factor_of
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from llm_influence.types import FloatArray, IntArray

MOST_ITEMS = 300
"""Single items that may be proxies: those of the most users."""
LEAST_SHOWN = 10
"""A level that fewer users have, or get recommended, is too rare to compare groups by."""

RECENT = 3
"""So many events back one counts half, where late events of a history are told from early ones."""

_EXPLAINED = f"""
CREATE OR REPLACE TABLE audit_explained AS
SELECT x.user_code, x.chosen, r.*
FROM (SELECT explanation, any_value(prediction) AS prediction, any_value(full_value) AS full_value,
        any_value(lds) AS lds, {total("abs(score)")} AS size, bool_or(position IS NULL) AS has_user,
        coalesce({total("abs(score)", "position IS NULL")}, 0) AS user_size,
        coalesce({total("score", "position IS NULL")}, 0) AS user_score
    FROM influence_rows GROUP BY explanation) AS r
JOIN explanations AS x USING (explanation)
"""
_EVENTS = f"""
CREATE OR REPLACE TABLE audit_events AS
SELECT x.user_code, r.explanation, r.position, any_value(r.item_id) AS item_id,
    any_value(r.behavior) AS behavior, any_value(r.value) AS value, abs({total("r.score")}) AS size,
    0.5 ** (any_value(x.events - 1 - r.position) / {RECENT}.0) AS late
FROM influence_rows AS r JOIN explanations AS x USING (explanation)
WHERE r.position IS NOT NULL GROUP BY ALL
"""
_ITEMS = """
CREATE OR REPLACE TABLE audit_items AS
SELECT item_id, count(DISTINCT user_code)::DOUBLE AS users FROM audit_events GROUP BY item_id
"""
_JOINED = (
    "FROM audit_events AS e LEFT JOIN items AS i ON i.item_id = e.item_id "
    "LEFT JOIN audit_top AS t ON t.item_id = e.item_id"
)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One way to sort events: by behaviour, a column of the items, or the item itself.

    Attributes:
        name: ``behavior``, ``item:genres``, ``item_id``.
        levels: (L,) names.
        counts: (U, L) events of each user.
        sizes: (U, L) sizes of their influence, added up.
        late: (U, L) events, counting half with every `RECENT` events further back.
        sql: The level's place over an event's row ``e`` and its item's row ``i``; null: none.
    """

    name: str
    levels: tuple[str, ...]
    counts: FloatArray
    sizes: FloatArray
    late: FloatArray
    sql: str

    def of(self, users: IntArray) -> Kind:
        """The same of some users."""
        return Kind(
            self.name,
            self.levels,
            self.counts[users],
            self.sizes[users],
            self.late[users],
            self.sql,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """One number a user, to compare groups by.

    Attributes:
        kind: ``exposure`` (what is recommended), ``quality`` (how good it is) or ``direct`` (what
            the user's features do).
        name: What it is.
        values: (U,), nan where there is none.
    """

    kind: str
    name: str
    values: FloatArray


class AuditUsers:
    """The U users of a view, read once for any number of sensitive features.

    Attributes:
        kinds: How events are sorted.
        measures: What groups are compared by.
        left_out: What cannot be compared, and why.
        facts: (U, q) what the histories are like.
        has_user: The users' features have scores of their own.
    """

    def __init__(self, view: InfluenceView) -> None:
        """Read the tables: a few evaluations, all but counts by user stays in the database."""
        self.view = view
        self.left_out: dict[str, str] = {}
        for statement in (_EXPLAINED, _EVENTS, _ITEMS):
            view.execute(statement)
        self._factors, self._done = self._item_factors(), self._done_factors()
        self.kinds = [self._kind(*each) for each in self._sorted_by()]
        averaged = ("prediction", "full_value", "lds", "user_score")

        def average(column: str) -> str:  # may be nan, and so cannot be added up as integers
            return f"avg({column} ORDER BY explanation) AS {column}"

        explained = view.table(
            f"SELECT user_code, {', '.join(map(average, averaged))}, "
            f"{total('user_size')} AS user_size, {total('size')} AS size, "
            "bool_and(has_user) AS has_user "
            "FROM audit_explained GROUP BY user_code ORDER BY user_code"
        )
        self._columns: dict[str, FloatArray] = {
            name: _floats(explained[name].to_numpy()) for name in explained.column_names
        }
        self.has_user = bool(self._columns["has_user"].all())
        self.measures = [each for each in self._measures() if self._varies(each)]
        self.facts = self._facts()

    def groups(self, feature: str) -> tuple[tuple[str, ...], IntArray]:
        """Levels of a feature of users, and (U,) places among them; -1 where it is not known.

        Raises:
            DataError: The tables have no such feature, or all users are alike in it.
        """
        factor = factor_of(self.view, feature)
        if isinstance(factor, str):
            raise TypeError("a column that is asked for is cut into levels")
        code = factor.codes.format(f"u.{named(feature.partition(':')[2])}")
        found = self.view.table(
            f"SELECT {code} AS code FROM user_codes AS c LEFT JOIN users AS u "
            "ON u.user_id = c.user_id ORDER BY c.user_code"
        )
        codes = found["code"].to_numpy().astype(np.int64)
        if UNKNOWN in factor.levels:
            codes = np.where(codes == factor.levels.index(UNKNOWN), -1, codes)
        return factor.levels, codes

    def user_shares(self) -> FloatArray:
        """(U,) share of all influence that the features of users have, in size."""
        return _divided(self._columns["user_size"], self._columns["size"])

    def shares(self, kind: Kind) -> FloatArray:
        """(U, L) share of all influence that events of each level carry, in size."""
        return _divided(kind.sizes, self._columns["size"][:, None])

    def weighted(self, weights: dict[str, FloatArray]) -> FloatArray:
        """(U,) share of influence where each event counts with the largest weight of its levels.

        Args:
            weights: (L,) of each level, by name of the kind.
        """
        listed = [
            f"coalesce({[float(w) for w in weights[kind.name]]}[{kind.sql} + 1], 0)"
            for kind in self.kinds
        ]
        through = total(f"e.size * greatest({', '.join(listed)})")
        found = self.view.table(
            f"SELECT e.user_code, {through} AS through {_JOINED} GROUP BY 1 ORDER BY 1"
        )
        return _divided(_floats(found["through"].to_numpy()), self._columns["size"])

    def _item_factors(self) -> list[Factor]:
        found = []
        for name in [name for name in self.view.columns if name.startswith("item:")]:
            factor = factor_of(self.view, name, asked=False)
            if isinstance(factor, str):
                self.left_out[name] = factor
            else:
                found.append(factor)
        return found

    def _done_factors(self) -> list[Factor]:
        """Behaviour and value, where they differ."""
        cut = [factor_of(self.view, name, asked=False) for name in ("behavior", "value")]
        return [factor for factor in cut if isinstance(factor, Factor)]

    def _sorted_by(self) -> list[tuple[str, tuple[str, ...], str]]:
        every = (*self._done, *self._factors)
        found = [(factor.name, factor.levels, _place(factor)) for factor in every]
        self.view.execute(
            "CREATE OR REPLACE TABLE audit_top AS SELECT item_id, row_number() OVER "
            f"(ORDER BY users DESC, item_id) - 1 AS place FROM audit_items WHERE users >= "
            f"{LEAST_SHOWN} ORDER BY place LIMIT {MOST_ITEMS}"
        )
        top = self.view.table("SELECT item_id FROM audit_top ORDER BY place")
        return [*found, ("item_id", tuple(top["item_id"].to_pylist()), "t.place")]

    def _kind(self, name: str, levels: tuple[str, ...], sql: str) -> Kind:
        found = self.view.table(
            f"SELECT user_code, code, count(*)::DOUBLE AS counts, {total('size')} AS sizes, "
            f"{total('late')} AS late "
            f"FROM (SELECT e.user_code, e.size, e.late, {sql} AS code {_JOINED}) "
            "WHERE code IS NOT NULL GROUP BY ALL"
        )
        where = (found["user_code"].to_numpy(), found["code"].to_numpy().astype(np.int64))
        sums = {
            column: np.zeros((self.view.users, len(levels)))
            for column in ("counts", "sizes", "late")
        }
        for column, matrix in sums.items():
            matrix[where] = found[column].to_numpy()
        return Kind(name, levels, sql=sql, **sums)

    def _facts(self) -> FloatArray:
        """What was done with which items, lately and at all, how often, and how popular they are.

        Shares of events by level, and how much there is of each level lately; for every column of
        the items that also by behaviour and by value, since models read these together.
        """
        events = self.view.table(
            "SELECT e.user_code, count(*)::DOUBLE AS events, "
            f"{mean('ln(1 + a.users)')} AS popularity "
            "FROM audit_events AS e JOIN audit_items AS a USING (item_id) GROUP BY 1 ORDER BY 1"
        )
        count = _floats(events["events"].to_numpy())
        sorted_by = [kind for kind in self.kinds if kind.name != "item_id"]
        crossed = [self._crossed(done, item) for done in self._done for item in self._factors]
        columns: list[FloatArray] = [kind.counts / count[:, None] for kind in sorted_by]
        columns += [kind.late for kind in (*sorted_by, *crossed)]
        return np.column_stack([*columns, np.log(count), events["popularity"].to_numpy()])

    def _crossed(self, done: Factor, item: Factor) -> Kind:
        """Events sorted by both."""
        levels = tuple(f"{a}, {b}" for a in done.levels for b in item.levels)
        sql = f"({_place(done)}) * {len(item.levels)} + ({_place(item)})"
        return self._kind(f"{done.name} x {item.name}", levels, sql)

    def _measures(self) -> list[Measure]:
        found = self._exposure()
        names = {
            "prediction": "probability of the target",
            "full_value": "value of the target",
            "lds": "linear fidelity",
        }
        found += [Measure("quality", shown, self._columns[name]) for name, shown in names.items()]
        if self.has_user:
            score = self._columns["user_score"]
            found.append(Measure("direct", "influence of the user's features", score))
        return found

    def _exposure(self) -> list[Measure]:
        known = self.view.table("SELECT count(chosen) AS known FROM audit_explained")
        if known["known"][0].as_py() < self.view.explanations:
            self.left_out["exposure"] = "targets that are no items"
            return []
        codes = {factor.name: _place(factor) for factor in self._factors}
        listed = ", ".join(f"{sql} AS {named(name)}" for name, sql in codes.items())
        source = (
            "FROM audit_explained AS x LEFT JOIN items AS i ON i.item_id = x.chosen "
            "LEFT JOIN audit_items AS a ON a.item_id = x.chosen ORDER BY x.user_code"
        )
        table = self.view.table(
            f"SELECT x.user_code, ln(1 + coalesce(a.users, 0)) AS popularity"
            f"{', ' + listed if listed else ''} {source}"
        )
        user = table["user_code"].to_numpy()
        many = np.bincount(user, minlength=self.view.users)
        found = [
            Measure(
                "exposure",
                "popularity of what is recommended",
                np.bincount(user, weights=table["popularity"].to_numpy()) / many,
            )
        ]
        for factor in self._factors:
            code = table[factor.name].to_numpy()
            for place, level in enumerate(factor.levels):
                share = np.bincount(user, weights=code == place) / many
                name = f"{factor.name.partition(':')[2]} {level} recommended"
                if (share > 0).sum() < LEAST_SHOWN or level in (UNKNOWN, OTHER):
                    continue
                found.append(Measure("exposure", name, share))
        return found

    def _varies(self, measure: Measure) -> bool:
        known = measure.values[~np.isnan(measure.values)]
        if len(known) < len(measure.values) or np.ptp(known) <= 1e-9 * (1 + np.abs(known).max()):
            why = "not known of every user" if len(known) < len(measure.values) else "never differs"
            self.left_out[measure.name] = why
            return False
        return True


def large_groups(feature: str, levels: tuple[str, ...], codes: IntArray, least: int) -> IntArray:
    """Places of the levels that have at least ``least`` users.

    Raises:
        DataError: There are fewer than two such levels.
    """
    sizes = np.bincount(codes[codes >= 0], minlength=len(levels))[: len(levels)]
    kept = np.flatnonzero(sizes >= least)
    if len(kept) < 2:
        shown = ", ".join(f"{level}: {size}" for level, size in zip(levels, sizes, strict=True))
        raise DataError(
            f"groups of users by size: {shown}",
            where=feature,
            expected=f"at least two groups with at least {least} users each",
            fix="explain more users, or join small groups in the user table",
        )
    return kept


def _place(factor: Factor) -> str:
    """SQL of a level's place, over an event ``e`` or its item's row ``i``."""
    table, _, column = factor.name.rpartition(":")
    return factor.codes.format(f"{'i' if table else 'e'}.{named(column)}")


def _divided(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _floats(column: np.ndarray) -> FloatArray:
    return column.astype(np.float64)
