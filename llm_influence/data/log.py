"""A behaviour log: all events of all users, sorted into histories and held as a few arrays.

The order is (user id as text, time, order of the file). The last is the pinned tie break: events
of the same moment stay as the file has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from llm_influence.errors import DataError, EmptyLogError, UnknownNameError, choices
from llm_influence.types import NO_FEATURES, CodeNames, History, time_span


@dataclass(frozen=True, eq=False)
class BehaviorLog:
    """Events of U users, N in all, as arrays; a `History` is a view on them.

    Attributes:
        user_ids: (U,) user ids, each once.
        offsets: (U+1,) int64; user u's events are ``offsets[u]:offsets[u + 1]``.
        items: (N,) int32 item codes, places in ``catalogue``.
        behaviors: (N,) int32 behaviour codes, places in ``code_names.behaviors``.
        timestamps: (N,) int64 Unix seconds, never decreasing within a user.
        values: (N,) float32, NaN where an event has no value.
        catalogue: The items.
        code_names: What the codes mean; its ``items`` is ``catalogue.ids``.
        users: (U rows) user features as text, "" where unknown; None without a user table.
        labels: (N,) float32 of what each event led to, NaN where it has no label; None without
            such a column. No history shows them: they may be known long after the event.
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
            items: The item table, a `Catalogue`, or None: the items are those met in the log.
            users: The user table with a `user_id` column, or None. Users that it lacks get "".
            columns: Contract name -> the file's own name (see `llm_influence.data.schema`).
            item_text: Item columns that make an item's text (see `Catalogue.from_table`).
            item_title: Item column shown to people.
            default_behavior: The behaviour of all events of a log without that column.
            timezone: IANA name of the zone of times written without one.
            duplicates: What to do with events that repeat an earlier row: refuse the log, drop
                all but the first, or keep them.

        Raises:
            SchemaError: A column is missing, misnamed or of the wrong type, or a key is empty.
            TimestampError: A time cannot be read, or its zone is not clear.
            DuplicateError: An event stands twice and ``duplicates`` is "error".
            UnknownNameError: An item is not in the item table.
            EmptyLogError: The log has no rows.
            DataError: A file is missing or cannot be read.
        """
        rows = read_log(
            source,
            items,
            columns=columns,
            item_text=item_text,
            item_title=item_title,
            default_behavior=default_behavior,
            timezone=timezone,
            duplicates=duplicates,
        )
        return cls(
            rows.user_ids,
            rows.offsets,
            rows.items,
            rows.behaviors,
            rows.timestamps,
            rows.values,
            rows.catalogue,
            CodeNames(rows.catalogue.ids, rows.behavior_names),
            None if users is None else read_users(users, rows.user_ids, columns=columns),
            rows.labels,
        )

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
        """A log of arrays that are already sorted into histories (shapes: see the class).

        Args:
            user_ids: (U,) user ids, each once.
            offsets: (U+1,) where each user's events start, and the end.
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
        """(U,) how many events each user has."""
        return np.diff(self.offsets)

    def rows_of_users(self) -> npt.NDArray[np.int64]:
        """(N,) the place of each event's user in ``user_ids``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def positions(self) -> npt.NDArray[np.int64]:
        """(N,) the place of each event in its user's history, from 0."""
        return np.arange(self.num_events) - np.repeat(self.offsets[:-1], self.lengths)

    def __getitem__(self, user_id: str) -> History:
        """A user's history by id; no event is copied. Searches U ids: to read all, iterate.

        Raises:
            UnknownNameError: The user is not in the log.
        """
        index = self._index(user_id)
        if index < 0:
            raise UnknownNameError(
                f"user {user_id!r} is not in the log",
                where="behaviour log",
                expected=f"one of its {len(self):,} users{nearest(self.user_ids, str(user_id))}",
                fix="check the id; ids are text, exactly as in the file",
            )
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
            raise UnknownNameError(
                f"there is no user number {index}",
                where="behaviour log",
                expected=f"a number from 0 to {len(self) - 1}",
                fix="use log[user_id] for a user id",
            )
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

        Users of whom nothing is left are left out, so numbers of users may change.

        Args:
            lengths: (U,) from 0 to the user's number of events.

        Raises:
            DataError: A length is out of range.
        """
        wanted = np.asarray(lengths, dtype=np.int64)
        if wanted.shape != (len(self),) or (wanted < 0).any() or (wanted > self.lengths).any():
            raise DataError(
                f"lengths of shape {wanted.shape} do not fit the histories",
                where="BehaviorLog.prefix",
                expected=f"({len(self)},) lengths from 0 to each user's number of events",
                fix="start from log.lengths",
            )
        kept = np.flatnonzero(self.positions() < np.repeat(wanted, self.lengths))
        users = np.flatnonzero(wanted)
        return replace(
            self,
            user_ids=self.user_ids.take(pa.array(users)),
            offsets=np.concatenate([[0], np.cumsum(wanted[users])]),
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
        wanted = pc.is_in(self.user_ids, value_set=pa.array(user_ids, pa.string()))
        return self.prefix(np.where(wanted.to_numpy(zero_copy_only=False), self.lengths, 0))

    def align(self, catalogue: Catalogue, behaviors: tuple[str, ...]) -> BehaviorLog:
        """The same events coded by another catalogue and list of behaviours, as a model has them.

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
            raise UnknownNameError(
                f"behaviour {name!r} is not known",
                where=self._place(event),
                expected=choices(behaviors, name),
                fix="rename the behaviour, remove its events, or use a model trained on it",
            )
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
    """Refuse arrays that are no log.

    Raises:
        EmptyLogError: There is no event.
        DataError: Lengths, codes or times do not fit together.
    """
    if not log.num_events:
        raise EmptyLogError(
            "there is no event",
            where="BehaviorLog.from_arrays",
            expected="at least one event",
            fix="check what made the arrays",
        )
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
        "a user stands twice": pc.count_distinct(log.user_ids).as_py() != len(log),
        "an item code is out of range": not _within(log.items, len(log.catalogue)),
        "a behaviour code is out of range": not _within(
            log.behaviors, len(log.code_names.behaviors)
        ),
        "the times of a user decrease": not starts.all(),
        "users has another number of rows": log.users is not None
        and log.users.num_rows != len(log),
    }
    for found, is_wrong in wrong.items():
        if is_wrong:
            raise DataError(
                found,
                where="BehaviorLog.from_arrays",
                expected="arrays sorted into histories, as the class describes them",
                fix="pass unsorted rows as a table to BehaviorLog.read",
            )


def _within(codes: npt.NDArray[np.int32], size: int) -> bool:
    return bool(codes.min() >= 0 and codes.max() < size)
