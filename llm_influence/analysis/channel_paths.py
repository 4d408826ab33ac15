"""Explained histories with an outcome, as paths of touches by channel.

``outcomes.parquet`` beside the influence tables says what came after each explained history. An
explanation finds its outcome by its user and by the number of events before the query time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.attribution_rules import ExplainedPaths, Paths
from llm_influence.analysis.columns import beside, select, sql_text
from llm_influence.analysis.levels import OTHER
from llm_influence.analysis.tables import InfluenceView
from llm_influence.data.readers import read_table
from llm_influence.data.schema import as_text
from llm_influence.errors import DataError, SchemaError, unknown
from llm_influence.influence.table_files import OUTCOMES

MOST_CHANNELS = 12
"""With more channels, the rare ones become one: the number of sets doubles with each channel."""
_NO_TOUCH = 255
_OUTCOMES = """
CREATE TABLE outcome_of AS
SELECT x.explanation, x.user_code, o.converted
FROM explanations AS x
JOIN user_codes AS c USING (user_code)
JOIN (
    SELECT explanation, any_value(left_out) AS left_out FROM influence_rows GROUP BY explanation
) AS l USING (explanation)
JOIN outcomes AS o ON o.user_id = c.user_id AND {same}
"""


def join_outcomes(
    view: InfluenceView, file: Path, *, conversion: str | None = None, positive_from: float = 1.0
) -> dict[str, int]:
    """Create the table ``outcome_of`` with explanation, user_code and converted.

    Args:
        view: The influence tables.
        file: Table of outcomes: `user_id`; `before`, the user's events before the query time (can
            be omitted if each user has one outcome); and `label` or `behavior`.
        conversion: Behaviour that is a conversion. Default: labels of at least ``positive_from``
            are, and rows without a label are left out.
        positive_from: The smallest label that is a conversion.

    Returns:
        Numbers of ``explanations`` with an outcome, ``conversions`` among them, and explanations
        ``without_outcome``.
    """
    table = _read_outcomes(file, conversion, positive_from)
    keyed = "before" in table.column_names
    _check_once(view, table, file, keyed=keyed)
    view.load("outcomes", table)
    view.execute("DROP TABLE IF EXISTS outcome_of")
    view.execute(_OUTCOMES.format(same="o.before = l.left_out + x.events" if keyed else "TRUE"))
    view.execute("DROP TABLE outcomes")
    (counts,) = view.table(
        "SELECT count(*) AS explanations, coalesce(sum(converted::INTEGER), 0)::BIGINT "
        "AS conversions FROM outcome_of"
    ).to_pylist()
    if not counts["explanations"]:
        raise DataError(
            "no explanation has an outcome",
            where=str(file),
            expected="the explained users and their numbers of events before the query time",
            fix="name the outcomes of these explanations with --outcomes",
        )
    return {**counts, "without_outcome": view.explanations - counts["explanations"]}


def find_outcomes(sources: Sequence[Path], given: Path | None) -> Path:
    """The given file, or the one beside the tables."""
    files = [given] if given else beside(sources, OUTCOMES)
    if len(files) != 1:
        raise DataError(
            f"{len(files) or 'no'} files {OUTCOMES}",
            where=", ".join(map(str, sources)),
            expected="one table that says which explained histories ended in a conversion",
            fix="explain with --examples test, which writes it, or name a file with --outcomes",
        )
    return files[0]


def _read_outcomes(file: Path, conversion: str | None, positive_from: float) -> pa.Table:
    """The columns user_id, converted, and before if it is there."""
    where, column = str(file), "label" if conversion is None else "behavior"
    table = read_table(file, text=("user_id",))
    for name in ("user_id", column):
        if name not in table.column_names:
            raise SchemaError(
                f"column {name!r} is missing",
                where=where,
                expected="`user_id`, and `label` (1: converted) or, with --conversion, `behavior`",
                fix="add the column, or name the behaviour of a conversion with --conversion",
            )
    if conversion is None:
        converted = pc.greater_equal(_numbers(table[column], column, where), positive_from)
    else:
        behaviors = as_text(table[column], name=column, where=where)
        known = [str(name) for name in pc.unique(behaviors).to_pylist()]
        if conversion not in known:
            raise unknown(DataError, "behaviour", conversion, known, where=where)
        converted = pc.equal(behaviors, conversion)
    users = as_text(table["user_id"], name="user_id", where=where)
    columns = {"user_id": users, "converted": converted}
    if "before" in table.column_names:
        columns["before"] = _numbers(table["before"], "before", where).cast(pa.int64())
    return pa.table(columns).filter(pc.is_valid(converted))


def _numbers(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """The column as float64, null for nan."""
    try:
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), None, numbers)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {name!r} has {column.type} ({error})",
            where=where,
            expected="numbers",
            fix="write the column as numbers",
        ) from error


def _check_once(view: InfluenceView, table: pa.Table, file: Path, *, keyed: bool) -> None:
    """Refuse two outcomes with the same key, and two explanations with the same key."""
    keys = ["user_id", "before"] if keyed else ["user_id"]
    fix = (
        "leave one of them out" if keyed else "add a column `before`, the number of earlier events"
    )
    if len(table.group_by(keys).aggregate([])) < len(table):
        found = f"two rows of the same {' and '.join(keys)}"
        raise DataError(found, where=str(file), expected="one outcome per explanation", fix=fix)
    code = "user_code, before" if keyed else "user_code"
    twice = view.table(
        f"SELECT any_value(user_id) AS user_id, count(*) AS n FROM (SELECT x.user_code, "
        "any_value(r.user_id) AS user_id, any_value(r.left_out) + any_value(x.events) AS before "
        "FROM influence_rows AS r JOIN explanations AS x USING (explanation) "
        f"GROUP BY explanation, user_code) GROUP BY {code} HAVING n > 1 LIMIT 1"
    )
    if len(twice):
        user, count = twice["user_id"][0].as_py(), twice["n"][0]
        raise DataError(
            f"{count} explanations of user {user!r}{' at one query time' if keyed else ''}",
            where="influence tables",
            expected="one explanation per outcome",
            fix="choose with --target or --run, or give the outcomes a column `before`",
        )


# --- paths ---------------------------------------------------------------------------------


class ChannelPaths:
    """Explained histories with an outcome, as paths; iterate to get `ExplainedPaths` in batches.

    Events are coded and sorted once, in the view's database, so memory does not grow with them.
    The view needs the table ``outcome_of`` (`channels.join_outcomes`).

    Args:
        view: The influence tables.
        channel: Column whose values are channels; an event without a value is no touch.
        touches: Behaviours that are touches. Default: all.

    Attributes:
        channels: Names in the order of their codes, the most frequent first.
    """

    def __init__(
        self, view: InfluenceView, channel: str, touches: tuple[str, ...] | None = None
    ) -> None:
        self._view = view
        view.select(channel)
        names = ("explanation", "position", "age_seconds", "score", "full_value", "behavior")
        columns = {name: view.columns[name] for name in names} | {"value": view.columns[channel]}
        events = f"({select(columns, parts=view.parts)})"
        is_touch = "TRUE" if touches is None else f"behavior IN ({_listed(view, touches)})"
        named, rare = self._names(f"{events} WHERE {is_touch} AND value IS NOT NULL", channel)
        self.channels = (*named, OTHER) if rare else named
        cases = " ".join(
            f"WHEN value::VARCHAR = {sql_text(name)} THEN {code}" for code, name in enumerate(named)
        )
        none = f"WHEN value IS NULL OR NOT ({is_touch}) THEN {_NO_TOUCH}"
        view.execute("DROP TABLE IF EXISTS touches")
        view.execute(
            'CREATE TABLE touches AS SELECT o.user_code AS "user", explanation, o.converted, '
            f"(CASE {none} {cases} ELSE {len(named)} END)::UTINYINT AS channel, "
            f"age_seconds, score, full_value "
            f"FROM {events} JOIN outcome_of AS o USING (explanation) "
            'ORDER BY "user", explanation, position'
        )

    def __iter__(self) -> Iterator[ExplainedPaths]:
        """All paths, in batches; those of a user follow each other."""
        rows = self._view.grouped_batches("SELECT * FROM touches", "explanation")
        yield from map(self._explained, rows)

    def _names(self, touched: str, channel: str) -> tuple[tuple[str, ...], bool]:
        """Channels that keep their names, and whether there are others."""
        names = self._view.table(
            "SELECT value::VARCHAR AS name, count(*) AS events "
            f"FROM {touched} GROUP BY 1 ORDER BY events DESC, name"
        )["name"].to_pylist()
        if len(names) < 2:
            raise DataError(
                f"one channel, {names[0]!r}" if names else "no channel",
                where=f"column {channel!r} of the touches",
                expected="at least two channels",
                fix="name another column with --channel, or more behaviours with --touch",
            )
        rare = len(names) > MOST_CHANNELS
        return tuple(names[: MOST_CHANNELS - 1] if rare else names), rare

    def _explained(self, rows: pa.Table) -> ExplainedPaths:
        explanation = rows["explanation"].to_numpy()
        starts = np.flatnonzero(np.diff(explanation, prepend=explanation[0] - 1))
        code, score = rows["channel"].to_numpy(), rows["score"].to_numpy()
        touch = code != _NO_TOUCH
        owner = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))[touch]
        channels = code[touch].astype(np.int64)
        scores = np.zeros((len(starts), len(self.channels)))
        np.add.at(scores, (owner, channels), score[touch])
        paths = Paths(
            channels=channels,
            ages=rows["age_seconds"].to_numpy()[touch].astype(np.float64),
            starts=np.searchsorted(owner, np.arange(len(starts) + 1)),
            converted=rows["converted"].to_numpy(zero_copy_only=False)[starts],
            count=len(self.channels),
        )
        full = rows["full_value"].to_numpy()[starts]
        return ExplainedPaths(paths, rows["user"].to_numpy()[starts], scores, full)


def _listed(view: InfluenceView, touches: tuple[str, ...]) -> str:
    query = f"SELECT DISTINCT behavior FROM ({view.select('behavior')}) ORDER BY behavior"
    known = view.table(query)["behavior"].to_pylist()
    for name in touches:
        if name not in known:
            fix = "name behaviours of the explained events"
            raise unknown(DataError, "behaviour", name, known, where="--touch", fix=fix)
    return ", ".join(sql_text(name) for name in touches)
