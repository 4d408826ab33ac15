"""What came after the explained histories: ``outcomes.parquet`` beside influence tables.

An explanation knows its user and how many events came before its question: those explained and
those left out. By these two it finds its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.analysis.tables import InfluenceView
from llm_influence.data.readers import read_table
from llm_influence.data.schema import as_text
from llm_influence.errors import DataError, SchemaError, choices
from llm_influence.influence.table_files import OUTCOMES

_JOINED = """
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
    view: InfluenceView,
    file: Path,
    *,
    conversion: str | None = None,
    positive_from: float = 1.0,
) -> dict[str, int]:
    """Make table ``outcome_of``: explanation, user_code, converted.

    Args:
        view: The influence tables.
        file: The outcomes: `user_id`; `before`, the user's events before the question (without it
            a user has one question); and `label` or `behavior`, what came.
        conversion: The behaviour that is a conversion; default: a label of ``positive_from`` or
            more is one, and what has no label is left out.
        positive_from: See ``conversion``.

    Returns:
        How many ``explanations`` have an outcome, ``conversions`` among them, and how many are
        ``without_outcome``.

    Raises:
        SchemaError: A column is missing or of another type.
        DataError: The file cannot be read, asks a question twice, knows no such behaviour, or has
            no outcome of any explanation.
    """
    table = _read(file, conversion, positive_from)
    _once(view, table, file)
    view.load("outcomes", table)
    keyed = "before" in table.column_names
    view.execute("DROP TABLE IF EXISTS outcome_of")
    view.execute(_JOINED.format(same="o.before = l.left_out + x.events" if keyed else "TRUE"))
    view.execute("DROP TABLE outcomes")
    (counts,) = view.table(
        "SELECT count(*) AS explanations, coalesce(sum(converted::INTEGER), 0)::BIGINT "
        "AS conversions FROM outcome_of"
    ).to_pylist()
    if not counts["explanations"]:
        raise DataError(
            "no explanation has an outcome",
            where=str(file),
            expected="users and numbers of events before the question, as they were explained",
            fix="name the outcomes of these explanations with --outcomes",
        )
    return {**counts, "without_outcome": view.explanations - counts["explanations"]}


def find_outcomes(sources: Sequence[Path], given: Path | None) -> Path:
    """The file to use: the one given, or the one beside the tables.

    Raises:
        DataError: There is none, or several.
    """
    if given is not None:
        return given
    folders = dict.fromkeys(place if place.is_dir() else place.parent for place in sources)
    found = [folder / OUTCOMES for folder in folders if (folder / OUTCOMES).exists()]
    if len(found) != 1:
        raise DataError(
            f"{len(found) or 'no'} files {OUTCOMES}",
            where=", ".join(str(folder) for folder in folders),
            expected="one: it says which explained histories ended in a conversion",
            fix="explain with --examples test, which writes it, or name a file with --outcomes",
        )
    return found[0]


def _read(file: Path, conversion: str | None, positive_from: float) -> pa.Table:
    """user_id, before (where it is there), converted."""
    where, what = str(file), "label" if conversion is None else "behavior"
    table = read_table(file, text=("user_id",))
    for name in ("user_id", what):
        if name not in table.column_names:
            raise SchemaError(
                f"column {name!r} is missing",
                where=where,
                expected="`user_id`, and `label` (1: converted) or, with --conversion, `behavior`",
                fix="add the column, or say with --conversion which behaviour is a conversion",
            )
    converted = (
        pc.greater_equal(_number(table[what], what, where), positive_from)
        if conversion is None
        else pc.equal(
            as_text(table[what], name=what, where=where), _known(table, conversion, where)
        )
    )
    users = as_text(table["user_id"], name="user_id", where=where)
    columns = {"user_id": users, "converted": converted}
    if "before" in table.column_names:
        columns["before"] = _number(table["before"], "before", where).cast(pa.int64())
    return pa.table(columns).filter(pc.is_valid(converted))


def _number(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """As float64, null where there is no number."""
    try:
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), None, numbers)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {name!r} has {column.type} ({error})",
            where=where,
            expected="numbers",
            fix="write it as numbers",
        ) from error


def _known(table: pa.Table, conversion: str, where: str) -> str:
    found = pc.unique(table["behavior"]).to_pylist()
    if conversion not in found:
        raise DataError(
            f"no outcome has behaviour {conversion!r}",
            where=where,
            expected=choices([str(name) for name in found], conversion),
            fix="correct --conversion",
        )
    return conversion


def _once(view: InfluenceView, table: pa.Table, file: Path) -> None:
    """Refuse two outcomes of a question, and a question explained twice."""
    keys = [name for name in ("user_id", "before") if name in table.column_names]
    if len(table.group_by(keys).aggregate([])) < len(table):
        raise DataError(
            f"two rows of the same {' and '.join(keys)}",
            where=str(file),
            expected="one outcome a question",
            fix="add `before`, the number of the user's events before the question"
            if len(keys) == 1
            else "leave one of them out",
        )
    asked = "user_code" if len(keys) == 1 else "user_code, before"
    twice = view.table(
        f"SELECT {asked}, count(*) AS n FROM (SELECT x.user_code, "
        "any_value(r.left_out) + any_value(x.events) AS before FROM influence_rows AS r "
        "JOIN explanations AS x USING (explanation) GROUP BY explanation, user_code) "
        f"GROUP BY {asked} HAVING n > 1 LIMIT 1"
    )
    if len(twice):
        (user,) = view.table(
            f"SELECT user_id FROM user_codes WHERE user_code = {twice['user_code'][0]}"
        )["user_id"].to_pylist()
        raise DataError(
            f"{twice['n'][0]} explanations of {'one question of ' * (len(keys) - 1)}user {user!r}",
            where="influence tables",
            expected="one of each outcome",
            fix="choose with --target or --run, or give the outcomes a column `before`",
        )
