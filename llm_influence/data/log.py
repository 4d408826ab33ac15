"""A behaviour log: the events of all users, sorted into histories and kept as a few arrays.

The order is: user id as text, time, order of the file. So ties, events at the same time, keep the
order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.reading import read_log, read_users
from llm_influence.data.schema import Columns, nearest
from llm_influence.errors import DataError, EmptyLogError, UnknownNameError, unknown
from llm_influence.types import NO_FEATURES, CodeNames, History, time_span


@dataclass(frozen=True, eq=False)
class BehaviorLog:
    """N events of U users as arrays. ``log["196"]`` is the `History` of a user, a view on them.

    ``len(log)`` is the number of users, iteration gives all histories, ``"196" in log`` tests for a
    user.

    Attributes:
        user_ids: (U,) user ids, each once.
        offsets: (U+1,) int64; user u's events are ``offsets[u]:offsets[u + 1]``.
        items: (N,) int32 item codes, places in ``catalogue``.
        behaviors: (N,) int32 behaviour codes, places in ``code_names.behaviors``.
        timestamps: (N,) int64 Unix seconds, never decreasing within a user.
        values: (N,) float32, NaN where an event has no value.
        catalogue: The items.
        code_names: The names behind the codes; its ``items`` is ``catalogue.ids``.
        users: (U rows) user features as text, "" where unknown; None without a user table.
        labels: (N,) float32 outcome of each event, NaN without one; None without such a column.
            Histories never show labels: they may be known long after the event.
    """

    user_ids: pa.StringArray
    offsets: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    behaviors: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    catalogue: Catalogue
    code_names: CodeNames
    users: pa.Table | None = None
    labels: npt.NDArray[np.float32] | None = None

    @classmethod
    def read(
        cls,
        source: object,
        items: object = None,
        users: object = None,
        *,
        columns: Columns | None = None,
        item_text: Sequence[str] | None = None,
        item_title: str | None = None,
        default_behavior: str = "interact",
        timezone: str | None = None,
        duplicates: Literal["error", "drop", "keep"] = "error",
    ) -> BehaviorLog:
        """Read a log and sort it into histories.

        Args:
            source: The events: anything `read_table` reads.
            items: The item table, a `Catalogue`, or None for the items that occur in the log.
            users: The user table with a `user_id` column, or None. Users not in it get "".
            columns: Contract name -> the file's own name (see `llm_influence.data.schema`).
            item_text: Item columns that form an item's text (see `Catalogue.from_table`).
            item_title: Item column with the title.
            default_behavior: The behaviour of all events if the log has no such column.
            timezone: IANA name of the zone of times without one.
            duplicates: ``error`` refuses a log with repeated events, ``drop`` keeps the first of
                each, ``keep`` keeps all.

        Raises:
            SchemaError: A column is missing, misnamed or of the wrong type, or a key is empty.
            TimestampError: A time cannot be read, or its zone is not clear.
            DuplicateError: An event is repeated and ``duplicates`` is "error".
            UnknownNameError: An item is not in the item table.
            EmptyLogError: The log has no rows.
            MissingFileError: There is no such file.
            DataError: A file cannot be read.
        """
        fields = read_log(
            source,
            items,
            columns=columns,
            item_text=item_text,
            item_title=item_title,
            default_behavior=default_behavior,
            timezone=timezone,
            duplicates=duplicates,
        )
        if users is not None:
            fields["users"] = read_users(users, fields["user_ids"], columns=columns)
        return cls(**fields)

    @classmethod
    def from_arrays(
        cls,
        *,
        user_ids: pa.Array | Sequence[str],
        offsets: npt.ArrayLike,
        items: npt.ArrayLike,
        timestamps: npt.ArrayLike,
        catalogue: Catalogue,
        behaviors: npt.ArrayLike | None = None,
        behavior_names: Sequence[str] = ("interact",),
        values: npt.ArrayLike | None = None,
        users: pa.Table | None = None,
        labels: npt.ArrayLike | None = None,
    ) -> BehaviorLog:
        """A log from arrays that are already sorted into histories; shapes as in the class.

        Args:
            user_ids: (U,) user ids, each once.
            offsets: (U+1,) start of each user's events, and the end.
            items: (N,) places in ``catalogue``.
            timestamps: (N,) Unix seconds, never decreasing within a user.
            catalogue: The items.
            behaviors: (N,) places in ``behavior_names``. Default: all 0.
            behavior_names: The behaviours.
            values: (N,) values. Default: none.
            users: (U rows) user features as text, in the order of ``user_ids``.
            labels: (N,) labels. Default: the log has none.

        Raises:
            DataError: Lengths, codes or times do not fit together.
        """
        stamps = np.asarray(timestamps, dtype=np.int64)
        log = cls(
            user_ids if isinstance(user_ids, pa.Array) else pa.array(user_ids, pa.string()),
            np.asarray(offsets, dtype=np.int64),
            np.asarray(items, dtype=np.int32),
            np.asarray(np.zeros(len(stamps)) if behaviors is None else behaviors, dtype=np.int32),
            stamps,
            np.asarray(np.full(len(stamps), np.nan) if values is None else values, np.float32),
            catalogue,
            CodeNames(catalogue.ids, tuple(behavior_names)),
            users,
            None if labels is None else np.asarray(labels, np.float32),
        )
        _check(log)
        return log

    def __len__(self) -> int:
        """Number of users U."""
        return len(self.user_ids)

    def __iter__(self) -> Iterator[History]:
        """All histories, in the order of ``user_ids``."""
        return (self.at(index) for index in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"BehaviorLog({self.num_events:,} events, {len(self):,} users, "
            f"{len(self.catalogue):,} items, {', '.join(self.code_names.behaviors)},\n"
            f"            {time_span(self.timestamps)})"
        )

    @property
    def num_events(self) -> int:
        """Number of events N."""
        return len(self.items)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(U,) number of events of each user."""
        return np.diff(self.offsets)

    def rows_of_users(self) -> npt.NDArray[np.int64]:
        """(N,) the place of each event's user in ``user_ids``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def positions(self) -> npt.NDArray[np.int64]:
        """(N,) the place of each event in its user's history, from 0."""
        return np.arange(self.num_events) - np.repeat(self.offsets[:-1], self.lengths)

    def __getitem__(self, user_id: str) -> History:
        """The history of a user; nothing is copied. To read all users, iterate instead.

        Raises:
            UnknownNameError: The user is not in the log.
        """
        index = self._index(user_id)
        if index < 0:
            found = f"user {user_id!r} is not in the log"
            expected = f"one of its {len(self):,} users{nearest(self.user_ids, str(user_id))}"
            fix = "check the id; ids are text, exactly as in the file"
            raise UnknownNameError(found, where="behaviour log", expected=expected, fix=fix)
        return self.at(index)

    def __contains__(self, user_id: object) -> bool:
        """Whether the log has a user of this id."""
        return self._index(user_id) >= 0

    def _index(self, user_id: object) -> int:
        return int(pc.index(self.user_ids, pa.scalar(str(user_id), pa.string())).as_py())

    def at(self, index: int, stop: int | None = None) -> History:
        """The history of user number ``index``, or its first ``stop`` events; nothing is copied.

        Raises:
            UnknownNameError: There is no user of that number.
        """
        if not 0 <= index < len(self):
            found, expected = f"there is no user number {index}", f"0 to {len(self) - 1}"
            fix = "use log[user_id] for a user id"
            raise UnknownNameError(found, where="behaviour log", expected=expected, fix=fix)
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        span = slice(start, end if stop is None else min(end, start + stop))
        return History(
            user_id=self.user_ids[index].as_py(),
            items=self.items[span],
            behaviors=self.behaviors[span],
            timestamps=self.timestamps[span],
            values=self.values[span],
            code_names=self.code_names,
            user=self.features(index),
        )

    def features(self, index: int) -> Mapping[str, str]:
        """The features of user number ``index`` by column name; empty without a user table."""
        if self.users is None:
            return NO_FEATURES
        names = self.users.column_names
        return MappingProxyType({name: self.users[name][index].as_py() for name in names})

    def prefix(self, lengths: npt.ArrayLike) -> BehaviorLog:
        """The log with only the first ``lengths[u]`` events of each user; all codes stay.

        Users without any event left are dropped.

        Args:
            lengths: (U,) from 0 to the user's number of events.

        Raises:
            DataError: A length is out of range.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        if lengths.shape != (len(self),) or (lengths < 0).any() or (lengths > self.lengths).any():
            found = f"lengths of shape {lengths.shape} do not fit the histories"
            expected = f"({len(self)},) lengths from 0 to each user's number of events"
            fix = "start from log.lengths"
            raise DataError(found, where="BehaviorLog.prefix", expected=expected, fix=fix)
        kept = np.flatnonzero(self.positions() < np.repeat(lengths, self.lengths))
        users = np.flatnonzero(lengths)
        return replace(
            self,
            user_ids=self.user_ids.take(pa.array(users)),
            offsets=np.concatenate([[0], np.cumsum(lengths[users])]),
            items=self.items[kept],
            behaviors=self.behaviors[kept],
            timestamps=self.timestamps[kept],
            values=self.values[kept],
            labels=None if self.labels is None else self.labels[kept],
            users=None if self.users is None else self.users.take(pa.array(users)),
        )

    def select(self, user_ids: Sequence[str]) -> BehaviorLog:
        """The log of these users alone, in the log's own order; all codes stay.

        Raises:
            UnknownNameError: A user is not in the log.
        """
        for user_id in user_ids:
            self[user_id]
        selected = pc.is_in(self.user_ids, value_set=pa.array(user_ids, pa.string()))
        return self.prefix(np.where(selected.to_numpy(zero_copy_only=False), self.lengths, 0))

    def align(self, catalogue: Catalogue, behaviors: tuple[str, ...]) -> BehaviorLog:
        """The same events with the codes of another catalogue and behaviours, as those of a model.

        Args:
            catalogue: Must hold every item that occurs in the log.
            behaviors: Must hold every behaviour that occurs in the log.

        Raises:
            UnknownNameError: An item or behaviour that occurs is not there.
        """
        items = catalogue.find(self.catalogue.ids)[self.items]
        if (items < 0).any():
            event = int(np.argmax(items < 0))
            item = self.catalogue.ids[int(self.items[event])].as_py()
            raise catalogue.unknown(item, where=self._place(event))
        places = {name: place for place, name in enumerate(behaviors)}
        recode = np.array([places.get(name, -1) for name in self.code_names.behaviors], np.int32)
        recoded = recode[self.behaviors]
        if (recoded < 0).any():
            event = int(np.argmax(recoded < 0))
            name = self.code_names.behaviors[self.behaviors[event]]
            fix = "rename the behaviour, remove its events, or use a model trained on it"
            place = self._place(event)
            raise unknown(UnknownNameError, "behaviour", name, behaviors, where=place, fix=fix)
        code_names = CodeNames(catalogue.ids, tuple(behaviors))
        return replace(
            self, items=items, behaviors=recoded, catalogue=catalogue, code_names=code_names
        )

    def to_table(self) -> pa.Table:
        """(N rows) the events under the contract's names, in the pinned order."""
        names = pa.array(self.code_names.behaviors, pa.string())
        table = pa.table(
            {
                "user_id": self.user_ids.take(pa.array(self.rows_of_users())),
                "item_id": self.catalogue.ids.take(pa.array(self.items)),
                "timestamp": pa.array(self.timestamps),
                "behavior": names.take(pa.array(self.behaviors)),
                "value": pa.array(self.values, from_pandas=True),
            }
        )
        if self.labels is None:
            return table
        return table.append_column("label", pa.array(self.labels, from_pandas=True))

    def _place(self, event: int) -> str:
        index = int(np.searchsorted(self.offsets, event, side="right")) - 1
        return f"event {event - int(self.offsets[index]) + 1} of user {self.user_ids[index]}"


def _check(log: BehaviorLog) -> None:
    """Refuse arrays that do not form a log."""
    where = "BehaviorLog.from_arrays"
    if not log.num_events:
        fix = "check the source of the arrays"
        raise EmptyLogError("there is no event", where=where, expected="events", fix=fix)
    starts = log.timestamps[1:] >= log.timestamps[:-1]
    starts[log.offsets[1:-1] - 1] = True
    labels = log.values if log.labels is None else log.labels
    columns = (log.items, log.behaviors, log.timestamps, log.values, labels)
    wrong = {
        "the arrays differ in length": len({len(column) for column in columns}) > 1,
        "offsets do not cover the events": len(log.offsets) != len(log) + 1
        or log.offsets[0] != 0
        or log.offsets[-1] != log.num_events
        or bool((np.diff(log.offsets) <= 0).any()),
        "a user occurs twice": pc.count_distinct(log.user_ids).as_py() != len(log),
        "an item code is out of range": not _within(log.items, log.catalogue),
        "a behaviour code is out of range": not _within(log.behaviors, log.code_names.behaviors),
        "the times of a user decrease": not starts.all(),
        "users has another number of rows": log.users is not None
        and log.users.num_rows != len(log),
    }
    for found, is_wrong in wrong.items():
        if is_wrong:
            expected = "arrays sorted into histories, as the class describes them"
            fix = "pass unsorted rows as a table to BehaviorLog.read"
            raise DataError(found, where=where, expected=expected, fix=fix)


def _within(codes: npt.NDArray[np.int32], names: Sized) -> bool:
    return bool(codes.min() >= 0 and codes.max() < len(names))
