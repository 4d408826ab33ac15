"""A queue of explanations for human review: risky ones first, each decided once.

Risk is the mean rank (0 to 1) of an explanation in several signs of danger: low trust in its scores
(``lds``, or else the completeness gap), much influence of the user's features, much influence of a
single event, and a recommendation that changes with a feature alone. Explanations are drawn with
probabilities in proportion to the square of their risk (Efraimidis and Spirakis 2006), so some
harmless ones are reviewed too.

People write ``accept`` or ``reject`` and a note into the CSV file. Decided explanations are kept,
and rejected ones are withheld (`withhold`).
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

from llm_influence.analysis.audit_users import find_fairness_test
from llm_influence.analysis.columns import exact_sum
from llm_influence.analysis.output import Record, to_csv
from llm_influence.analysis.statistics import divide
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import ConfigError, DataError, out_of_range
from llm_influence.influence.influence import Key
from llm_influence.types import FloatArray
from llm_influence.utils import with_formula, write_text

KEY = ("user_id", "method", "target", "target_id")
"""Columns that identify an explanation (`Influence.key`)."""
REASONS = {
    "distrust": "scores fit the model badly",
    "user_share": "features of the user have much influence",
    "largest_share": "one event has much influence",
    "fairness_test": "another value of a feature changes the recommendation",
}
"""Signs of danger; a column of the queue each."""
ANSWERS = ("decision", "note")
COLUMNS = (
    *(*KEY, "target_name", "prediction", "risk", "reason", "strongest"),
    *(*REASONS, *ANSWERS),
)
DECISIONS = ("accept", "reject")

_EXPLAINED = f"""
SELECT x.*, e.largest, e.strongest FROM (
    SELECT explanation, any_value(user_id) AS user_id, any_value(method) AS method,
        any_value(target) AS target, any_value(target_id) AS target_id,
        any_value(target_name) AS target_name, any_value(prediction) AS prediction,
        any_value(lds) AS lds, any_value(completeness_gap) AS gap,
        {exact_sum("abs(score)")} AS size,
        coalesce({exact_sum("abs(score)", "position IS NULL")}, 0) AS user_size
    FROM influence_rows GROUP BY explanation) AS x
JOIN (
    SELECT explanation, max(abs(score)) AS largest,
        arg_max(name || ' (' || behavior || ') ' || format('{{:+.3g}}', score), abs(score))
            AS strongest
    FROM (
        SELECT explanation, position, {exact_sum("score")} AS score,
            any_value(behavior) AS behavior,
            any_value(CASE WHEN title = '' THEN item_id ELSE title END) AS name
        FROM influence_rows WHERE position IS NOT NULL GROUP BY explanation, position)
    GROUP BY explanation) AS e USING (explanation)
ORDER BY explanation
"""


@dataclass(frozen=True, slots=True)
class Queue:
    """The content of a review file."""

    records: list[Record]  # Decided explanations first, then those that wait, the riskiest first

    @property
    def waiting(self) -> int:
        """Number of records without a decision."""
        return self.decided("")

    def decided(self, decision: str) -> int:
        """Number of records with this decision."""
        return sum(record["decision"] == decision for record in self.records)


def update_queue(view: InfluenceView, path: Path, *, size: int = 20, seed: int = 0) -> Queue:
    """Draw explanations without a decision, and write them after the decided ones.

    Args:
        view: The tables.
        path: The CSV file; decisions and notes of an existing file are kept.
        size: Number of explanations that wait for a decision.
        seed: Seed of the draw; the order of the tables does not matter.

    Raises:
        DataError: The existing file is damaged; the message names row and column.
        ConfigError: ``size`` is below 1.
        OutputError: The file cannot be written.
    """
    if size < 1:
        raise out_of_range(ConfigError, "--size", size, expected="at least 1")
    existing = read_queue(path) if path.exists() else []
    kept = [record for record in existing if record["decision"] or record["note"]]
    keys = {_key(record) for record in kept}
    waiting = size - sum(not record["decision"] for record in kept)
    candidates = [record for record in _risks(view) if _key(record) not in keys]
    candidates.sort(key=lambda record: (-_draw(record, seed), _key(record)))
    drawn = candidates[: max(0, waiting)]
    drawn.sort(key=lambda record: (-record["risk"], _key(record)))
    queue = Queue([*kept, *drawn])
    rows = [{name: record[name] for name in COLUMNS} for record in queue.records]
    write_text(path, to_csv(rows))
    return queue


def read_queue(path: Path) -> list[Record]:
    """The records of a review file; every cell is text.

    Raises:
        DataError: The file cannot be read, a column is missing, a decision is unknown, or a key is
            empty or repeated; the message names row and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"cannot be read ({error})", "a CSV file in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = [name for name in (*KEY, *ANSWERS) if name not in (reader.fieldnames or [])]
    if missing:
        listed = ", ".join(f"column {name!r}" for name in missing)
        raise _damaged(path, f"row 1: {listed} missing", f"the columns {', '.join(COLUMNS)}")
    records: dict[Key, Record] = {}
    try:
        for row in reader:
            record, where = _checked(path, reader.line_num, row), f"row {reader.line_num}"
            if _key(record) in records:
                found = f"{where}, column 'user_id': {_key(record)} again"
                raise _damaged(path, found, "each explanation once")
            records[_key(record)] = record
    except csv.Error as error:
        raise _damaged(path, f"row {reader.line_num}: {error}", "rows of CSV") from error
    return list(records.values())


def rejected(records: Iterable[Mapping[str, Any]]) -> frozenset[Key]:
    """Keys of rejected explanations (`Influence.key`)."""
    return frozenset(_key(record) for record in records if record["decision"] == "reject")


def withhold(table: pa.Table, records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """An influence table without the rejected explanations."""
    withheld = rejected(records)
    columns = [table[name].to_pylist() for name in KEY]
    kept = [key not in withheld for key in zip(*columns, strict=True)]
    if len(table) and not any(kept):
        raise DataError(
            "every explanation was rejected",
            where="review",
            expected="at least one explanation that may be shown",
            fix="explain other users, or change decisions in the review file",
        )
    return table.filter(pa.array(kept, pa.bool_()))


def _checked(path: Path, line: int, row: Mapping[str, str | None]) -> Record:
    """A row with all columns, its decision in lower case."""
    record: Record = {name: with_formula(row.get(name) or "") for name in COLUMNS}
    record["decision"] = str(record["decision"]).strip().lower()
    if None in row or None in row.values():
        found, expected = ": another number of cells than columns", "one cell per column"
    elif empty := [name for name in KEY if not record[name]]:
        found, expected = f", column {empty[0]!r}: empty", "the value that `review` wrote"
    elif record["decision"] not in ("", *DECISIONS):
        found = f", column 'decision': {row['decision']!r}"
        expected = f"{' or '.join(DECISIONS)}, or an empty cell"
    else:
        return record
    raise _damaged(path, f"row {line}{found}", expected)


def _damaged(path: Path, found: str, expected: str) -> DataError:
    return DataError(found, where=str(path), expected=expected, fix="correct the file")


def _key(record: Mapping[str, Any]) -> Key:
    return record["user_id"], record["method"], record["target"], record["target_id"]


def _risks(view: InfluenceView) -> list[Record]:
    """All explanations with their risk; of several with the same key, the first."""
    table = view.table(_EXPLAINED)
    columns = {name: table[name].to_pylist() for name in (*KEY, "target_name", "prediction")}
    lds, gap, size, user_size, largest = (
        table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("lds", "gap", "size", "user_size", "largest")
    )
    changed = _changed(view)
    signs = {
        "distrust": 1 - np.where(np.isnan(lds), 1 - gap, lds),
        "user_share": divide(user_size, size, none=0.0),
        "largest_share": divide(largest, size, none=0.0),
        "fairness_test": np.array([changed.get(user, np.nan) for user in columns["user_id"]]),
    }
    ranks = {name: _ranks(sign) for name, sign in signs.items() if np.nan_to_num(sign).max() > 0}
    risk = np.mean(list(ranks.values()), axis=0) if ranks else np.zeros(len(table))
    records: dict[Key, Record] = {}
    for row in range(len(table)):
        worst = max(ranks, key=lambda name: float(ranks[name][row]), default="")
        record = {name: column[row] for name, column in columns.items()}
        record |= {name: float(sign[row]) for name, sign in signs.items()}
        record |= {"risk": float(risk[row]), "reason": REASONS.get(worst, "")}
        record |= {"strongest": table["strongest"][row].as_py(), "decision": "", "note": ""}
        records.setdefault(_key(record), record)
    return list(records.values())


def _changed(view: InfluenceView) -> dict[str, float]:
    """1 for users whose recommendation changes with a feature alone, 0 for other tested users."""
    table = find_fairness_test(view.sources)
    changed: dict[str, float] = {}
    if table is not None:
        pairs = zip(table["user_id"].to_pylist(), table["changed"].to_pylist(), strict=True)
        for user, other in pairs:
            changed[user] = max(changed.get(user, 0.0), float(other))
    return changed


def _ranks(sign: FloatArray) -> FloatArray:
    """Ranks from near 0 to 1, the largest; equal numbers share a rank, unknown ones count as 0."""
    ranks: FloatArray = stats.rankdata(np.nan_to_num(sign, nan=0.0)) / len(sign)
    return ranks


def _draw(record: Record, seed: int) -> float:
    """The key of weighted sampling, log(u) / weight, with u from the record and the seed alone."""
    text = "\n".join([str(seed), *_key(record)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return float(np.log(uniform) / max(record["risk"] ** 2, 1e-12))
