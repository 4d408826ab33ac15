"""A queue of explanations for people to look at: the risky ones first, each decided once.

Risk is the mean of what is known of an explanation, each as its rank among all (0 to 1): how little
its scores can be trusted (`lds`, else the completeness gap), how much influence the user's features
have, how much a single event has, and whether the recommendation flips with a feature alone.
Explanations are drawn with chances in proportion to the square of their risk (Efraimidis and
Spirakis 2006), so that calm ones are looked at too, now and then.

People write ``accept`` or ``reject`` and a note into the CSV. What is decided is kept, never asked
again, and what is rejected is withheld (`withhold`).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from llm_influence.analysis.audit_tests import flips_beside
from llm_influence.analysis.columns import total
from llm_influence.analysis.output import to_csv
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import ConfigError, DataError
from llm_influence.influence.influence import Key
from llm_influence.types import FloatArray
from llm_influence.utils import write_text

KEY = ("user_id", "method", "target", "target_id")
"""Columns of what an explanation is known by (`Influence.key`)."""
SHOWN = ("target_name", "prediction", "risk", "reason", "strongest")
PARTS = ("distrust", "user_share", "largest_share", "flips")
ASKED = ("decision", "note")
COLUMNS = (*KEY, *SHOWN, *PARTS, *ASKED)
DECISIONS = ("accept", "reject")
WHY = {
    "distrust": "scores fit the model badly",
    "user_share": "features of the user have much influence",
    "largest_share": "one event has much influence",
    "flips": "another value of a feature changes the recommendation",
}

_EXPLAINED = f"""
SELECT x.*, e.largest, e.strongest FROM (
    SELECT explanation, any_value(user_id) AS user_id, any_value(method) AS method,
        any_value(target) AS target, any_value(target_id) AS target_id,
        any_value(target_name) AS target_name, any_value(prediction) AS prediction,
        any_value(lds) AS lds, any_value(completeness_gap) AS gap, {total("abs(score)")} AS size,
        coalesce({total("abs(score)", "position IS NULL")}, 0) AS user_size
    FROM influence_rows GROUP BY explanation) AS x
JOIN (
    SELECT explanation, max(abs(score)) AS largest,
        arg_max(name || ' (' || behavior || ') ' || format('{{:+.3g}}', score), abs(score))
            AS strongest
    FROM (
        SELECT explanation, position, {total("score")} AS score, any_value(behavior) AS behavior,
            any_value(CASE WHEN title = '' THEN item_id ELSE title END) AS name
        FROM influence_rows WHERE position IS NOT NULL GROUP BY explanation, position)
    GROUP BY explanation) AS e USING (explanation)
ORDER BY explanation
"""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Queue:
    """What stands in the file now.

    Attributes:
        records: Decided ones first, then those that wait, the riskiest first.
    """

    records: list[Record]

    @property
    def waiting(self) -> int:
        """Records without a decision."""
        return sum(not record["decision"] for record in self.records)

    def decided(self, decision: str) -> int:
        """Records with this decision."""
        return sum(record["decision"] == decision for record in self.records)


def update_queue(view: InfluenceView, path: Path, *, size: int = 20, seed: int = 0) -> Queue:
    """Draw explanations that nobody has decided on, and write them behind those decided.

    Args:
        view: The tables.
        path: The CSV; one that is there is read, its decisions and notes are kept.
        size: How many are to wait.
        seed: Of the draw; the same seed draws the same, whatever the order of the tables.

    Raises:
        DataError: The file that is there is damaged; the message names row and column.
        ConfigError: ``size`` is below 1.
        OutputError: The file cannot be written.
    """
    if size < 1:
        raise ConfigError(
            f"size is {size}", where="review", expected="at least 1", fix="ask for more"
        )
    there = read_queue(path) if path.exists() else []
    known = [each for each in there if each["decision"] or each["note"]]
    keys = {_key(record) for record in known}
    found = [record for record in _risks(view) if _key(record) not in keys]
    found.sort(key=lambda record: (-_drawn(record, seed), _key(record)))
    wanted = max(0, size - sum(not each["decision"] for each in known))
    drawn = sorted(found[:wanted], key=lambda record: (-record["risk"], _key(record)))
    queue = Queue([*known, *drawn])
    write_text(path, to_csv([{name: each[name] for name in COLUMNS} for each in queue.records]))
    return queue


def read_queue(path: Path) -> list[Record]:
    """The records of a queue, texts as they stand there.

    Raises:
        DataError: It cannot be read, a column is missing, a decision is no known word, a key is
            empty or stands twice; the message names row and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, f"cannot be read ({error})", "a CSV file in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = [name for name in (*KEY, *ASKED) if name not in (reader.fieldnames or [])]
    if missing:
        listed = ", ".join(f"column {name!r}" for name in missing)
        raise _bad(path, f"row 1: {listed} missing", f"the columns {', '.join(COLUMNS)}")
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise _bad(path, f"row {reader.line_num}: {error}", "rows of CSV") from error
    records: dict[Key, Record] = {}
    for line, row in rows:
        record = _checked(path, line, row)
        if _key(record) in records:
            raise _bad(path, f"row {line}, column 'user_id': {_key(record)} again", "each one once")
        records[_key(record)] = record
    return list(records.values())


def rejected(records: Iterable[Mapping[str, Any]]) -> frozenset[Key]:
    """Which explanations were rejected, by `Influence.key`."""
    return frozenset(_key(record) for record in records if record["decision"] == "reject")


def withhold(table: pa.Table, records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """An influence table without the explanations that were rejected.

    Raises:
        DataError: Nothing is left.
    """
    taken_out = rejected(records)
    columns = [table[name].to_pylist() for name in KEY]
    kept = [key not in taken_out for key in zip(*columns, strict=True)]
    if len(table) and not any(kept):
        raise DataError(
            "every explanation was rejected",
            where="review",
            expected="at least one that may be shown",
            fix="explain other users, or look at the decisions again",
        )
    return table.filter(pa.array(kept, pa.bool_()))


def _checked(path: Path, line: int, row: Mapping[str, str | None]) -> Record:
    """A row with all columns, its decision in lower case."""
    if None in row or None in row.values():
        raise _bad(path, f"row {line}: another number of cells than columns", "one a column")
    record: Record = {name: row.get(name, "") for name in COLUMNS}
    for name in KEY:
        if not record[name]:
            raise _bad(path, f"row {line}, column {name!r}: empty", "what `review` wrote there")
    record["decision"] = str(record["decision"]).strip().lower()
    if record["decision"] not in ("", *DECISIONS):
        raise _bad(
            path,
            f"row {line}, column 'decision': {row['decision']!r}",
            f"{' or '.join(DECISIONS)}, or nothing",
        )
    return record


def _bad(path: Path, found: str, expected: str) -> DataError:
    return DataError(found, where=str(path), expected=expected, fix="correct the file")


def _key(record: Mapping[str, Any]) -> Key:
    return record["user_id"], record["method"], record["target"], record["target_id"]


def _risks(view: InfluenceView) -> list[Record]:
    """All explanations with their risk; of those that several runs made, the first."""
    table = view.table(_EXPLAINED)
    columns = {name: table[name].to_pylist() for name in (*KEY, "target_name", "prediction")}
    numbers = {
        name: table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("lds", "gap", "size", "user_size", "largest")
    }
    whole = np.where(numbers["size"] > 0, numbers["size"], 1.0)
    trusted = np.where(np.isnan(numbers["lds"]), 1 - numbers["gap"], numbers["lds"])
    flipped = _flipped(view)
    parts = {
        "distrust": 1 - trusted,
        "user_share": numbers["user_size"] / whole,
        "largest_share": numbers["largest"] / whole,
        "flips": np.array([flipped.get(user, np.nan) for user in columns["user_id"]], dtype=float),
    }
    ranks = {name: _ranks(part) for name, part in parts.items() if np.nanmax(_full(part)) > 0}
    risk = np.mean(list(ranks.values()), axis=0) if ranks else np.zeros(len(table))
    found: dict[tuple[str, ...], Record] = {}
    for row in range(len(table)):
        worst = max(ranks, key=lambda name: float(ranks[name][row]), default="")
        record = {name: column[row] for name, column in columns.items()}
        record |= {name: float(part[row]) for name, part in parts.items()}
        record |= {"risk": float(risk[row]), "reason": WHY.get(worst, "")}
        record |= {"strongest": table["strongest"][row].as_py(), "decision": "", "note": ""}
        found.setdefault(_key(record), record)
    return list(found.values())


def _flipped(view: InfluenceView) -> dict[str, float]:
    """Whether some other value changes a user's recommendation, of those who were asked."""
    table = flips_beside(view.sources)
    if table is None:
        return {}
    found: dict[str, float] = {}
    pairs = zip(table["user_id"].to_pylist(), table["changed"].to_pylist(), strict=True)
    for user, changed in pairs:
        found[user] = max(found.get(user, 0.0), float(changed))
    return found


def _full(part: FloatArray) -> FloatArray:
    """Numbers with 0 for what is not known."""
    return np.nan_to_num(part, nan=0.0)


def _ranks(part: FloatArray) -> FloatArray:
    """From near 0 to 1, the largest; equal numbers share a rank, what is not known stands low."""
    ranks: FloatArray = stats.rankdata(_full(part)) / len(part)
    return ranks


def _drawn(record: Record, seed: int) -> float:
    """The key of weighted sampling: log(u) / weight, u from the record and the seed alone."""
    text = "\n".join([str(seed), *_key(record)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return float(np.log(uniform) / max(record["risk"] ** 2, 1e-12))
