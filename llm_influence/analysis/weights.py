"""What one event of each behaviour counts, at equal age: a product form fitted to cell means.

Influence fades, and behaviours differ in how recent they are, so plain means of behaviours mix what
was done with when. The form

    mean score of (behaviour b, age a) = w_b d_a

separates them without a shape assumed for the decay d: the best product for the table of cell
means, each weighted by its events, found by alternating least squares. Standard errors leave out
one of `GROUPS` groups of users at a time (the delete-a-group jackknife).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_influence.analysis.exact import total
from llm_influence.analysis.parts import speaking
from llm_influence.analysis.regression import LEVEL
from llm_influence.analysis.tables import InfluenceView
from llm_influence.types import FloatArray

GROUPS = 100
ROUNDS = 200
OLDEST = 50
"""Ages are cut at half powers of two, of minutes; the oldest range is open."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Behaviours on one scale.

    Attributes:
        behaviors: (B,) names.
        values: (B,) weights, the largest being 1.
        errors: (B,) standard errors over users.
        events: (B,) events behind each.
        groups: Of users, left out in turn.
    """

    behaviors: tuple[str, ...]
    values: FloatArray
    errors: FloatArray
    events: FloatArray
    groups: int

    @property
    def critical(self) -> float:
        """Half the width of a 95% interval, in standard errors."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.groups - 1))


def behavior_weights(view: InfluenceView, match: str | None = None) -> Weights:
    """Fit the product form.

    Args:
        view: The tables; at least 2 users.
        match: A column ``match:...`` that tells what each event counts for
            (`llm_influence.analysis.parts.speaking`). Default: every event counts as it is.

    Raises:
        DataError: There is no such column.
        ConfigError: It is another column.
    """
    side = speaking(view, match)
    columns = ["user", "behavior", "age_seconds", "score", *([match] if match else [])]
    names = ["u", "behavior", "age", "score", *(["side"] if match else [])]
    cells = view.table(
        f"SELECT u % {GROUPS} AS part, behavior, "
        f"least(floor(2 * log2(1 + age / 60)), {OLDEST})::INTEGER AS age, "
        f"{total(f'score * {side}')} AS total, count(*) AS events "
        f"FROM ({view.select(*columns)}) AS t({', '.join(names)}) WHERE {side} IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    )
    behaviors = tuple(sorted(set(cells["behavior"].to_pylist())))
    parts, part = np.unique(cells["part"].to_numpy(), return_inverse=True)
    place = np.array([behaviors.index(name) for name in cells["behavior"].to_pylist()], dtype=int)
    totals, events = np.zeros((2, len(parts), len(behaviors), OLDEST + 1))
    where = (part, place, cells["age"].to_numpy())
    totals[where], events[where] = cells["total"].to_numpy(), cells["events"].to_numpy()
    whole = totals.sum(axis=0), events.sum(axis=0)
    values = _product(*whole)
    left = [_product(whole[0] - t, whole[1] - n) for t, n in zip(totals, events, strict=True)]
    count = len(parts)
    errors = np.sqrt((count - 1) / count * ((np.array(left) - values) ** 2).sum(axis=0))
    return Weights(behaviors, values, errors, whole[1].sum(axis=1), count)


def _product(totals: FloatArray, events: FloatArray) -> FloatArray:
    """(B,) the factor of rows of the best product for (B, A) means, the largest being 1."""
    weights = _solve(totals.sum(axis=1), events.sum(axis=1))
    for _ in range(ROUNDS):
        decay = _solve(weights @ totals, weights**2 @ events)
        weights = _solve(totals @ decay, events @ decay**2)
    largest = np.abs(weights).max(initial=0.0)
    return weights / largest if largest else weights


def _solve(moved: FloatArray, known: FloatArray) -> FloatArray:
    return np.divide(moved, known, out=np.zeros_like(moved), where=known > 0)
