"""What counterfactual flips say of a feature: does the recommendation hang on it alone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from llm_influence.analysis.intervals import Mean, mean_of
from llm_influence.analysis.levels import MOST_LEVELS
from llm_influence.errors import DataError
from llm_influence.influence.flips import read_flips
from llm_influence.influence.parquet import FLIPS

ANY = "any"
"""The own value of all users together, of a feature with many."""


@dataclass(frozen=True, slots=True)
class Flips:
    """Of the users whose feature is known.

    Attributes:
        users: How many.
        changed: Share of them whose first recommendation some other value changes.
        p_value: Chance of so many changes if no more users than tolerated could have one.
        pairs: One record a pair of values, as a table has it.
    """

    users: int
    changed: float
    p_value: float
    pairs: list[dict[str, Any]]


def flips_beside(sources: Sequence[Path]) -> pa.Table | None:
    """The flips beside influence tables, or None.

    Raises:
        DataError: Several tables have their own.
        SchemaError: See `read_flips`.
    """
    folders = dict.fromkeys(place if place.is_dir() else place.parent for place in sources)
    found = [folder / FLIPS for folder in folders if (folder / FLIPS).exists()]
    if len(found) > 1:
        raise DataError(
            f"flips beside several tables: {', '.join(map(str, found))}",
            where="influence tables",
            expected="one table of flips, or none",
            fix="audit the tables one by one",
        )
    return read_flips(found[0]) if found else None


def flips_of(table: pa.Table, feature: str, tolerated: float) -> Flips | None:
    """What the flips of one feature say; None where there are none.

    Args:
        table: As `read_flips` gives it.
        feature: Name of the feature, without ``user:``.
        tolerated: Share of users who may have a change.
    """
    rows = table.filter(pc.equal(table["feature"], feature))
    if not len(rows):
        return None
    users, user = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    changed = np.zeros(len(users), dtype=bool)
    np.logical_or.at(changed, user, rows["changed"].to_numpy(zero_copy_only=False))
    test = stats.binomtest(int(changed.sum()), len(users), tolerated, alternative="greater")
    return Flips(len(users), float(changed.mean()), float(test.pvalue), _pairs(rows, feature))


def _pairs(rows: pa.Table, feature: str) -> list[dict[str, Any]]:
    values, others = (np.array(rows[name].to_pylist()) for name in ("value", "other"))
    if len(np.unique(values)) > MOST_LEVELS:
        values = np.full(len(values), ANY)
    moved = rows["log_odds_other"].to_numpy() - rows["log_odds"].to_numpy()
    columns = {
        "changed": rows["changed"].to_numpy(zero_copy_only=False).astype(np.float64),
        "kept": rows["kept"].to_numpy(),
        "log_odds_moved": moved,
    }
    found = []
    for value, other in sorted(set(zip(values.tolist(), others.tolist(), strict=True))):
        these = (values == value) & (others == other)
        record: dict[str, Any] = {"feature": f"user:{feature}", "value": value, "other": other}
        record["users"] = int(these.sum())
        for name, column in columns.items():
            mean: Mean = mean_of(column[these])
            record |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
        found.append(record)
    return found
