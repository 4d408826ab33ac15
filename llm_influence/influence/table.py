"""The influence table: one row an event or player, a fixed Arrow schema with a version.

Batch jobs write it; analyses and reports read it. Columns that belong to a whole explanation
repeat on each of its rows, which Parquet stores in almost no space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.errors import DataError, SchemaError, missing
from llm_influence.types import Event, IntArray

VERSION = "1"
VERSION_KEY = b"llm_influence.schema"


def _column(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


SLATE_CHANGE = pa.struct(
    [
        ("event", pa.int64()),
        ("size", pa.int64()),
        ("moved", pa.int64()),
        ("leaves", pa.list_(pa.string())),
        ("enters", pa.list_(pa.string())),
    ]
)
"""What the removal of one event changes on a slate, see `SlateChange`."""
SCHEMA = pa.schema(
    [
        _column("run", pa.string()),
        _column("user_id", pa.string()),
        _column("player", pa.int32()),  # 0, 1, 2... within each explanation
        # null for the user's features, which belong to no event:
        _column("position", pa.int32(), nullable=True),  # 0 is the oldest explained event
        _column("field", pa.string(), nullable=True),  # part of the event, null for the whole
        _column("item_id", pa.string(), nullable=True),
        _column("title", pa.string(), nullable=True),
        _column("behavior", pa.string(), nullable=True),
        _column("timestamp", pa.int64(), nullable=True),  # Unix seconds, UTC
        _column("gap_seconds", pa.int64(), nullable=True),  # null for the first event
        _column("value", pa.float32(), nullable=True),
        _column("gate", pa.float64(), nullable=True),  # of a gated recurrence, null elsewhere
        # exact parts of the memory, null for models without one:
        _column("memory_share", pa.float64(), nullable=True),  # of the item's probability
        _column("memory_log_odds", pa.float64(), nullable=True),  # by association
        _column("method", pa.string()),
        _column("target", pa.string()),
        _column("target_id", pa.string()),
        _column("target_name", pa.string()),
        _column("removal", pa.string()),
        _column("units", pa.string()),
        _column("score", pa.float64()),
        _column("standard_error", pa.float64(), nullable=True),
        _column("rank", pa.int32()),  # 1 is the most supporting player
        _column("in_block", pa.bool_()),  # scored together; has an equal part of the sum
        _column("prompt_score", pa.float64()),
        _column("base_value", pa.float64()),
        _column("full_value", pa.float64()),
        _column("prediction", pa.float64(), nullable=True),  # null where the target has none
        # of an item among the user's candidates, null for other targets:
        _column("target_rank", pa.int64(), nullable=True),
        _column("candidates", pa.int64(), nullable=True),
        _column("unread", pa.list_(pa.string())),  # of behavior, value, time: not read by the model
        _column("slate_change", SLATE_CHANGE, nullable=True),  # null for other targets
        _column("completeness_gap", pa.float64(), nullable=True),  # null where nothing moved
        _column("evaluations", pa.int64()),
        _column("seed", pa.int64()),
        _column("left_out", pa.int64()),
        _column("largest_standard_error", pa.float64(), nullable=True),
        _column("converged", pa.bool_(), nullable=True),
        _column("lds", pa.float64(), nullable=True),
        _column("fidelity_masks", pa.int64()),
        _column("agreement", pa.float64(), nullable=True),
        _column("agreement_with", pa.string()),  # empty where no second method was compared
        _column("card_evaluations", pa.int64()),
        _column("bfloat16_error", pa.float64(), nullable=True),  # null: all was read in float32
    ],
    metadata={VERSION_KEY: VERSION.encode()},
)
"""The columns of an influence table, in order. The metadata holds the schema's version."""

QUALITY = (
    *("method", "removal", "units", "completeness_gap", "evaluations", "seed", "left_out"),
    *("largest_standard_error", "converged", "lds", "fidelity_masks", "agreement"),
    *("agreement_with", "card_evaluations", "bfloat16_error"),
)
"""Columns of the quality card."""
UNMEASURED = (
    *("prediction", "completeness_gap", "largest_standard_error", "lds", "agreement"),
    "bfloat16_error",
)
"""Numbers that may not exist: nan in a record, null in a table and in JSON."""
OF_EVENTS = {
    "gate": "gates",
    "memory_share": "memory_shares",
    "memory_log_odds": "memory_log_odds",
}
"""Columns of numbers that belong to events whatever the players are, and their fields."""
_EXPLANATION = (
    *("user_id", "prompt_score", "target", "target_id", "target_name"),
    *("base_value", "full_value", "prediction", "target_rank", "candidates", "unread"),
    "slate_change",
    *QUALITY,
)

Fields = Mapping[str, Any]
"""An explanation as plain data: the fields of `Influence` and `QualityCard` side by side."""


def table_of(explanations: Sequence[Fields], run: str = "") -> pa.Table:
    """Lay explanations out as rows, one an event or player, one explanation after another.

    Args:
        explanations: Explanations as plain data; ``players`` are (event, field) pairs or None.
        run: Text for the ``run`` column.

    Raises:
        DataError: An explanation has no event, a score that is not finite, another number of
            scores than players, an event without a player, or events out of time order.
    """
    for fields in explanations:
        _check(fields)
    lengths = np.array([len(fields["values"]) for fields in explanations], dtype=np.int64)
    owner = np.repeat(np.arange(len(explanations)), lengths)
    columns = {
        "run": pa.repeat(pa.scalar(run, pa.string()), len(owner)),
        **_player_columns(explanations),
        **_score_columns(explanations, owner, positions(lengths)),
        **{name: _repeated(name, explanations, owner) for name in _EXPLANATION},
    }
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def fields_of(table: pa.Table) -> list[dict[str, Any]]:
    """The explanations of a table as plain data; the reverse of `table_of` except for the run.

    Raises:
        SchemaError: A column is missing or has another type.
        DataError: Rows of an explanation are missing or out of order.
    """
    table = with_schema(table, "table")
    starts = explanation_starts(table)
    spans = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(table)], strict=False)]
    scores = table["score"].to_numpy()
    of_events = {field: table[name].to_numpy() for name, field in OF_EVENTS.items()}
    errors = table["standard_error"].to_numpy()
    in_block = table["in_block"].to_numpy()
    names = ("item_id", "behavior", "timestamp", "value", "title")
    events = list(map(Event, *(table[name].to_pylist() for name in names)))
    pairs = list(zip(table["position"].to_pylist(), table["field"].to_pylist(), strict=True))
    shared = table.select(_EXPLANATION).take(pa.array(starts)).to_pylist()
    return [
        {
            **_players(events[span], pairs[span], whole),
            **{name: _by_event(row[span], pairs[span]) for name, row in of_events.items()},
            "values": scores[span].copy(),
            "standard_errors": None if np.isnan(errors[span.start]) else errors[span].copy(),
            "block": tuple(np.flatnonzero(in_block[span]).tolist()),
            **{k: math.nan if v is None and k in UNMEASURED else v for k, v in row.items()},
        }
        for span, row, whole in zip(spans, shared, events_only(table, starts), strict=True)
    ]


def explanation_starts(table: pa.Table) -> npt.NDArray[np.int64]:
    """(N,) the row at which each explanation begins.

    Raises:
        DataError: Rows of an explanation are missing or out of order.
    """
    player = table["player"].to_numpy()
    starts = np.flatnonzero(player == 0)
    lengths = np.diff(starts, append=len(player))
    whole = (not len(player)) or (len(starts) > 0 and starts[0] == 0)
    if not whole or not np.array_equal(player, positions(lengths)):
        raise DataError(
            "rows of an explanation are missing or out of order",
            where="influence table, column 'player'",
            expected="players 0, 1, 2... within each explanation",
            fix="keep explanations whole when filtering, and sort by run, user_id, method, "
            "target_id and player",
        )
    return starts


def positions(lengths: IntArray) -> npt.NDArray[np.int32]:
    """0, 1, 2... within each explanation: (N,) lengths to (rows,) positions."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return (np.arange(total) - np.repeat(ends - lengths, lengths)).astype(np.int32)


def events_only(table: pa.Table, starts: IntArray) -> npt.NDArray[np.bool_]:
    """(N,) whether the players of an explanation are its events."""
    parts = pc.or_(pc.is_valid(table["field"]), pc.is_null(table["position"])).to_numpy()
    return ~np.logical_or.reduceat(parts, starts) if len(starts) else np.zeros(0, dtype=bool)


def check_columns(schema: pa.Schema, where: str) -> None:
    """Refuse a table that lacks a column."""
    lacking = [repr(name) for name in SCHEMA.names if name not in schema.names]
    if lacking:
        raise missing(
            SchemaError,
            lacking,
            where=where,
            expected="the columns of an influence table: " + ", ".join(SCHEMA.names),
            fix="keep every column when rewriting a table, or explain again",
        )


def with_schema(table: pa.Table, where: str) -> pa.Table:
    """The columns of `SCHEMA` in its order and types.

    Raises:
        SchemaError: A column is missing, or cannot become its type without loss.
    """
    check_columns(table.schema, where)
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise SchemaError(
            f"columns of other types ({error})",
            where=where,
            expected="the types of llm_influence.influence.table.SCHEMA",
            fix="write the table with to_arrow and write_table",
        ) from error


def _check(fields: Fields) -> None:
    """Refuse an explanation that would make a broken row, or none at all."""
    problem, players = None, _pairs(fields)
    values, count = fields["values"], len(fields["events"])
    if not count:
        problem = "an explanation of no event"
    elif np.shape(values) != (len(players),):
        problem = f"values of shape {np.shape(values)} for {len(players)} players"
    elif {event for event, _ in players} - {None} != set(range(count)):
        problem = f"players that are not of all the {count} events and of no other"
    elif not np.isfinite(values).all():
        problem = f"a score of {values[~np.isfinite(values)][0]}"
    if problem:
        raise DataError(
            problem,
            where=f"influence by {fields['method']!r} for user {fields['user_id']!r}",
            expected="one finite score for each player, and a player of each event",
            fix="leave this explanation out, or make it again with another method or options",
        )


def _pairs(fields: Fields) -> Sequence[tuple[int | None, str | None]]:
    """(event, field) of each player."""
    if fields["players"] is not None:
        players: Sequence[tuple[int | None, str | None]] = fields["players"]
        return players
    return [(place, None) for place in range(len(fields["events"]))]


def _player_columns(explanations: Sequence[Fields]) -> dict[str, pa.Array]:
    """The columns of the players' events, and the part of the event."""
    lengths = np.array([len(fields["events"]) for fields in explanations], dtype=np.int64)
    events = list(chain.from_iterable(fields["events"] for fields in explanations))
    columns = {"position": pa.array(positions(lengths)), **_event_columns(events, lengths)}
    for name, field in OF_EVENTS.items():
        numbers = _joined(_or_nan(each[field], len(each["events"])) for each in explanations)
        columns[name] = pa.array(numbers, mask=np.isnan(numbers))
    pairs = [_pairs(fields) for fields in explanations]
    first = np.cumsum(lengths) - lengths
    rows = [  # None: no event
        None if event is None else start + event
        for start, own in zip(first.tolist(), pairs, strict=True)
        for event, _ in own
    ]
    index = pa.array(rows, pa.int64())
    return {name: values.take(index) for name, values in columns.items()} | {
        "field": pa.array([field for own in pairs for _, field in own], pa.string())
    }


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
    explanations: Sequence[Fields], owner: IntArray, player: IntArray
) -> dict[str, pa.Array]:
    score = _joined(fields["values"] for fields in explanations)
    error = _joined(_or_nan(each["standard_errors"], len(each["values"])) for each in explanations)
    # One sort ranks every explanation; like `Influence.ranked`, ties keep the recent first.
    order = np.lexsort((-player, -score, owner))
    rank = np.empty(len(score), dtype=np.int32)
    rank[order] = player + 1
    in_block = [np.isin(np.arange(len(e["values"])), e["block"]) for e in explanations]
    return {
        "player": pa.array(player),
        "score": pa.array(score),
        "in_block": pa.array(np.concatenate([np.empty(0, bool), *in_block])),
        "standard_error": pa.array(error, mask=np.isnan(error)),
        "rank": pa.array(rank),
    }


def _repeated(name: str, explanations: Sequence[Fields], owner: IntArray) -> pa.Array:
    """A column that belongs to whole explanations, repeated on each of their rows."""
    values = pa.array((fields[name] for fields in explanations), SCHEMA.field(name).type)
    if name in UNMEASURED:
        values = pc.if_else(pc.is_nan(values), None, values)
    return values.take(pa.array(owner))


def _or_nan(values: npt.NDArray[np.floating] | None, length: int) -> npt.NDArray[np.floating]:
    return np.full(length, np.nan) if values is None else values


def _joined(arrays: Iterable[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.empty(0), *arrays]).astype(np.float64)


def _players(
    events: list[Event], pairs: list[tuple[int | None, str | None]], whole: bool
) -> dict[str, Any]:
    """The events of an explanation, and its players unless they are the events."""
    if whole:
        return {"events": tuple(events), "players": None}
    rows = {place: row for row, (place, _) in reversed(list(enumerate(pairs))) if place is not None}
    if sorted(rows) != list(range(len(rows))):
        raise DataError(
            f"positions {sorted(rows)}",
            where="influence table, column 'position'",
            expected="at least one player of every event 0, 1, 2... of an explanation",
            fix="keep explanations whole when filtering",
        )
    return {
        "events": tuple(events[rows[place]] for place in range(len(rows))),
        "players": tuple(pairs),
    }


def _by_event(
    numbers: npt.NDArray[np.float64], pairs: list[tuple[int | None, str | None]]
) -> npt.NDArray[np.float64] | None:
    """(E,) numbers of the events at these rows' positions; None where the model has none."""
    if np.isnan(numbers).all():
        return None
    events = np.array([-1 if place is None else place for place, _ in pairs])
    _, first = np.unique(events[events >= 0], return_index=True)
    return numbers[events >= 0][first]
