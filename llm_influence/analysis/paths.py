"""Explained histories as paths of touches by channel, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_influence.analysis.buckets import quoted
from llm_influence.analysis.columns import select
from llm_influence.analysis.levels import OTHER
from llm_influence.analysis.tables import InfluenceView
from llm_influence.analysis.touch import Paths
from llm_influence.errors import DataError, choices
from llm_influence.types import FloatArray, IntArray

MOST_CHANNELS = 12
"""With more, the most frequent keep their names and the rest is one: sets of channels double with
each."""
_NONE = 255
"""Code of an event that is no touch."""


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """P paths with what the model says of them.

    Attributes:
        paths: The paths.
        users: (P,) codes of users, never decreasing.
        scores: (P, C) summed influence of each channel's touches.
        full: (P,) the explained target with all events.
    """

    paths: Paths
    users: IntArray
    scores: FloatArray
    full: FloatArray


class ChannelPaths:
    """The explained histories that have an outcome, as paths.

    Needs table ``outcome_of`` (`analysis.outcomes`). Events are coded and sorted once, in the
    view's database; memory does not grow with them.

    Args:
        view: The influence tables.
        channel: Column whose values are channels; an event without one is no touch.
        touches: Behaviours that are touches; default: all.

    Attributes:
        channels: Names in the order of their codes, the most frequent first.

    Raises:
        DataError: An unknown column or behaviour, or fewer than two channels.
    """

    def __init__(
        self, view: InfluenceView, channel: str, touches: tuple[str, ...] | None = None
    ) -> None:
        self._view = view
        view.select(channel)  # refuses a name that is none
        names = ("explanation", "position", "age_seconds", "score", "full_value", "behavior")
        columns = {name: view.columns[name] for name in names} | {"value": view.columns[channel]}
        events = f"({select(columns, parts=view.parts)})"
        isin = "TRUE" if touches is None else f"behavior IN ({_listed(view, touches)})"
        self.channels = self._names(f"{events} WHERE {isin} AND value IS NOT NULL", channel)
        cases = " ".join(
            f"WHEN value::VARCHAR = {quoted(name)} THEN {code}"
            for code, name in enumerate(self.channels)
            if name != OTHER
        )
        rest = len(self.channels) - 1 if OTHER in self.channels else _NONE
        view.execute("DROP TABLE IF EXISTS touches")
        view.execute(
            'CREATE TABLE touches AS SELECT o.user_code AS "user", explanation, o.converted, '
            f"(CASE WHEN value IS NULL OR NOT ({isin}) THEN {_NONE} {cases} ELSE {rest} END)"
            "::UTINYINT AS channel, age_seconds, score, full_value "
            f"FROM {events} JOIN outcome_of AS o USING (explanation) "
            'ORDER BY "user", explanation, position'
        )

    def __iter__(self) -> Iterator[Explained]:
        """All paths, those of a user together, in pieces."""
        rest: pa.Table | None = None
        for table in self._view.batches("SELECT * FROM touches"):
            whole = table if rest is None else pa.concat_tables([rest, table])
            explanation = whole["explanation"].to_numpy()
            cut = int(np.flatnonzero(explanation != explanation[-1]).max(initial=-1)) + 1
            if cut:
                yield self._explained(whole.slice(0, cut))
            rest = whole.slice(cut)
        if rest is not None:
            yield self._explained(rest)

    def _names(self, touched: str, channel: str) -> tuple[str, ...]:
        found = self._view.table(
            "SELECT value::VARCHAR AS name, count(*) AS events "
            f"FROM {touched} GROUP BY 1 ORDER BY events DESC, name"
        )["name"].to_pylist()
        if len(found) < 2:
            raise DataError(
                f"{f'one channel, {found[0]!r}' if found else 'no channel'}",
                where=f"column {channel!r} of the touches",
                expected="at least two, to tell what each is worth",
                fix="name another column with --channel, or more behaviours with --touches",
            )
        cut = len(found) > MOST_CHANNELS
        return (*found[: MOST_CHANNELS - 1], OTHER) if cut else tuple(found)

    def _explained(self, rows: pa.Table) -> Explained:
        explanation = rows["explanation"].to_numpy()
        starts = np.flatnonzero(np.diff(explanation, prepend=explanation[0] - 1))
        code, score = rows["channel"].to_numpy(), rows["score"].to_numpy()
        touch = code != _NONE
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
        return Explained(paths, rows["user"].to_numpy()[starts], scores, full)


def _listed(view: InfluenceView, touches: tuple[str, ...]) -> str:
    query = f"SELECT DISTINCT behavior FROM ({view.select('behavior')}) ORDER BY behavior"
    known = view.table(query)["behavior"].to_pylist()
    for name in touches:
        if name not in known:
            raise DataError(
                f"no event with behaviour {name!r}",
                where="--touches",
                expected=choices(known, name),
                fix="name behaviours of the explained events",
            )
    return ", ".join(quoted(name) for name in touches)
