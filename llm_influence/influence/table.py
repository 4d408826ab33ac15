"""Influence in the long form: one row an event or player, a fixed Arrow schema with a version.

This is what batch jobs write and what analysis and reports read. The columns that belong to an
explanation as a whole repeat on each of its rows; Parquet stores such repeats in almost nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.errors import DataError
from llm_influence.influence.influence import Influence, Player, QualityCard
from llm_influence.influence.table_files import (
    SCHEMA,
    explanation_starts,
    positions,
    with_schema,
)
from llm_influence.types import Event, IntArray

_QUALITY = tuple(field.name for field in dataclasses.fields(QualityCard))
_UNMEASURED = (
    *("prediction", "completeness_gap", "largest_standard_error", "lds", "agreement"),
    "bfloat16_error",
)
"""Numbers that may not exist: nan in a record, null in a table."""
_EXPLANATION = (
    *("user_id", "prompt_score", "target", "target_id", "target_name"),
    *("base_value", "full_value", "prediction"),
)


def to_arrow(influences: Iterable[Influence], run: str = "") -> pa.Table:
    """Lay explanations out as rows, one an event or player, explanations one after another.

    Args:
        influences: Any number of explanations, of any methods and targets.
        run: A name for where they come from, written in the ``run`` column.

    Returns:
        A table with `SCHEMA`, the events of each explanation oldest first. Event values are
        stored as float32, like in a log.

    Raises:
        DataError: An explanation has no event, a score that is not a finite number, another
            number of scores than events or players, an event without a player, or events that are
            not in time order.
    """
    records = list(influences)
    for record in records:
        _check(record)
    lengths = np.array([len(record.scores) for record in records], dtype=np.int64)
    owner = np.repeat(np.arange(len(records)), lengths)
    columns = {
        "run": pa.repeat(pa.scalar(run, pa.string()), len(owner)),
        **_player_columns(records),
        **_score_columns(records, owner, positions(lengths)),
        **{name: _repeated(name, records, owner) for name in _EXPLANATION},
        **{name: _repeated(f"quality.{name}", records, owner) for name in _QUALITY},
    }
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def from_arrow(table: pa.Table) -> list[Influence]:
    """Read the explanations back; the reverse of `to_arrow` except for the run.

    Raises:
        SchemaError: A column is missing or of another type.
        DataError: Rows of an explanation are missing or out of order.
    """
    table = with_schema(table, "table")
    starts = explanation_starts(table)
    stops = [*starts[1:], len(table)][: len(starts)]
    scores = table["score"].to_numpy()
    errors = table["standard_error"].to_numpy()
    shared = table.select([*_EXPLANATION, *_QUALITY]).take(pa.array(starts)).to_pylist()
    plain, events = _plain(table, starts), _events(table)
    gates = table["gate"].to_numpy()
    position, field = table["position"].to_pylist(), table["field"].to_pylist()
    return [
        Influence(
            **_players(events[start:stop], position[start:stop], field[start:stop], whole),
            gates=_gates(gates[start:stop], position[start:stop]),
            scores=scores[start:stop].copy(),
            standard_errors=None if np.isnan(errors[start]) else errors[start:stop].copy(),
            quality=QualityCard(**_measured(row, _QUALITY)),
            **_measured(row, _EXPLANATION),
        )
        for start, stop, row, whole in zip(starts, stops, shared, plain, strict=True)
    ]


def by_event(table: pa.Table) -> pa.Table:
    """One row an event, whatever the players were; see `Influence.by_event`.

    Raises:
        SchemaError, DataError: As in `from_arrow`.
    """
    if _plain(table, explanation_starts(table)).all():
        return table
    runs = table["run"].take(pa.array(explanation_starts(table)))
    records = [record.by_event() for record in from_arrow(table)]
    rows = np.repeat(np.arange(len(records)), [len(record.events) for record in records])
    return to_arrow(records).set_column(0, SCHEMA.field("run"), runs.take(pa.array(rows)))


def _measured(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """These fields of a row, nan where it has no number."""
    none = {name for name in _UNMEASURED if row[name] is None}
    return {name: math.nan if name in none else row[name] for name in names}


def _check(record: Influence) -> None:
    """Refuse an explanation that would make a broken or silently missing row."""
    found = None
    players = _players_of(record)
    if not len(record.events):
        found = "an explanation of no event"
    elif np.shape(record.scores) != (len(players),):
        found = f"scores of shape {np.shape(record.scores)} for {len(players)} players"
    elif {p.event for p in players} - {None} != set(range(len(record.events))):
        found = f"players that are not of all the {len(record.events)} events and of no other"
    elif not np.isfinite(record.scores).all():
        found = f"a score of {record.scores[~np.isfinite(record.scores)][0]}"
    if found:
        raise DataError(
            found,
            where=f"influence by {record.quality.method!r} for user {record.user_id!r}",
            expected="one finite score for each player, and a player of each event",
            fix="leave this explanation out, or make it again with another method or options",
        )


def _players_of(record: Influence) -> Sequence[Player]:
    if record.players is not None:
        return record.players
    return [Player(place) for place in range(len(record.events))]


def _player_columns(records: list[Influence]) -> dict[str, pa.Array]:
    """What the players are: their events' columns, and which part of the event."""
    lengths = np.array([len(record.events) for record in records], dtype=np.int64)
    events = list(chain.from_iterable(record.events for record in records))
    columns = {"position": pa.array(positions(lengths)), **_event_columns(events, lengths)}
    gates = _joined(
        [np.full(len(r.events), np.nan) if r.gates is None else r.gates for r in records]
    )
    columns["gate"] = pa.array(gates, mask=np.isnan(gates))
    players = [_players_of(record) for record in records]
    first = np.cumsum(lengths) - lengths
    rows = [  # None: no event
        None if player.event is None else start + player.event
        for start, own in zip(first.tolist(), players, strict=True)
        for player in own
    ]
    index = pa.array(rows, pa.int64())
    return {name: column.take(index) for name, column in columns.items()} | {
        "field": pa.array([player.field for own in players for player in own], pa.string())
    }


def _plain(table: pa.Table, starts: IntArray) -> npt.NDArray[np.bool_]:
    """(N,) whether an explanation's players are its events."""
    parts = pc.or_(pc.is_valid(table["field"]), pc.is_null(table["position"])).to_numpy()
    if not len(starts):
        return np.zeros(0, dtype=bool)
    return ~np.logical_or.reduceat(parts, starts)


def _players(
    events: list[Event], position: list[int | None], field: list[str | None], plain: bool
) -> dict[str, Any]:
    """``events`` and ``players`` of an explanation whose rows have these events and fields."""
    if plain:
        return {"events": tuple(events)}
    places = {place: row for row, place in reversed(list(enumerate(position))) if place is not None}
    if sorted(places) != list(range(len(places))):
        raise DataError(
            f"positions {sorted(places)}",
            where="influence table, column 'position'",
            expected="at least one player of every event 0, 1, 2... of an explanation",
            fix="keep explanations whole when filtering",
        )
    return {
        "events": tuple(events[places[place]] for place in range(len(places))),
        "players": tuple(map(Player, position, field)),
    }


def _gates(
    gate: npt.NDArray[np.float64], position: Sequence[int | None]
) -> npt.NDArray[np.float64] | None:
    """(E,) gates of the events at these rows' positions; None where the model has none."""
    if np.isnan(gate).all():
        return None
    events = np.array([-1 if place is None else place for place in position])
    _, first = np.unique(events[events >= 0], return_index=True)
    return gate[events >= 0][first]


def _event_columns(events: list[Event], lengths: IntArray) -> dict[str, pa.Array]:
    times = np.fromiter(map(attrgetter("timestamp"), events), np.int64, len(events))
    first = positions(lengths) == 0
    gaps = np.diff(times, prepend=times[:1])
    if len(gaps) and (gaps[~first] < 0).any():
        row = int(np.argmax((gaps < 0) & ~first))
        raise DataError(
            f"an event at {times[row]} follows one at {times[row - 1]}",
            where=f"influence row {row}",
            expected="events in time order, oldest first",
            fix="explain histories whose events are sorted by timestamp",
        )
    return {
        "item_id": pa.array(map(attrgetter("item"), events), pa.string()),
        "title": pa.array(map(attrgetter("title"), events), pa.string()),
        "behavior": pa.array(map(attrgetter("behavior"), events), pa.string()),
        "timestamp": pa.array(times),
        "gap_seconds": pa.array(gaps, mask=first),
        "value": pa.array(map(attrgetter("value"), events), pa.float32()),
    }


def _score_columns(
    records: list[Influence], owner: IntArray, player: IntArray
) -> dict[str, pa.Array]:
    score = _joined([record.scores for record in records])
    error = _joined(
        [
            np.full(len(record.scores), np.nan)
            if record.standard_errors is None
            else record.standard_errors
            for record in records
        ]
    )
    # One sort ranks every explanation; like `Influence.ranked`, ties keep the recent first.
    order = np.lexsort((-player, -score, owner))
    rank = np.empty(len(score), dtype=np.int32)
    rank[order] = player + 1
    return {
        "player": pa.array(player),
        "score": pa.array(score),
        "standard_error": pa.array(error, mask=np.isnan(error)),
        "rank": pa.array(rank),
    }


def _joined(arrays: list[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.empty(0), *arrays]).astype(np.float64)


def _repeated(attribute: str, records: list[Influence], owner: IntArray) -> pa.Array:
    """A column of what belongs to an explanation as a whole, on each of its rows."""
    name = attribute.rpartition(".")[2]
    values = pa.array(map(attrgetter(attribute), records), SCHEMA.field(name).type)
    if name in _UNMEASURED:
        values = pc.if_else(pc.is_nan(values), None, values)
    return values.take(pa.array(owner))


def _events(table: pa.Table) -> list[Event]:
    names = ("item_id", "behavior", "timestamp", "value", "title")
    return list(map(Event, *(table[name].to_pylist() for name in names)))
