"""The records that all rooms share: `Event`, `History` and `CodeNames`.

An `Event` is one thing a user did; a `History` is a user's events in time order. A history keeps
integer codes, and all histories of a log share one `CodeNames` with the meaning of the codes. So a
log of ten million rows is a handful of arrays, and `Event` objects are made only for display.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_influence.errors import DataError, check_type

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

NO_FEATURES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did.

    Attributes:
        item: Item id, as text.
        behavior: What was done: click, view, cart, purchase, rate, favourite...
        timestamp: Unix time in whole seconds, UTC.
        value: Rating, amount or feedback; None where the event has none.
        title: The item's name for people; empty where the catalogue has none.
    """

    item: str
    behavior: str
    timestamp: int
    value: float | None = None
    title: str = ""

    @property
    def name(self) -> str:
        """The title, or the item id where there is no title."""
        return self.title or self.item


@dataclass(frozen=True, eq=False)
class CodeNames:
    """The names behind the integer codes of a history. Compared by identity: one for each log.

    Attributes:
        items: Item ids by item code, an Arrow string array of length I.
        behaviors: Behaviour names by behaviour code.
    """

    items: pa.StringArray
    behaviors: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class History:
    """A user's events in time order (ties already pinned), as arrays of equal length E.

    Attributes:
        user_id: The user, as text.
        items: (E,) item codes into ``code_names.items``.
        behaviors: (E,) behaviour codes into ``code_names.behaviors``.
        timestamps: (E,) Unix seconds, never decreasing.
        values: (E,) float32, NaN where an event has no value.
        code_names: The names behind the codes.
        user: User features by column name, as text.
        query_time: Time for which the next event is predicted, Unix seconds; None if unknown. It
            is never rendered: only models with the time-to-query input use it.
    """

    user_id: str
    items: IntArray
    behaviors: IntArray
    timestamps: IntArray
    values: FloatArray
    code_names: CodeNames
    user: Mapping[str, str] = field(default_factory=lambda: NO_FEATURES)
    query_time: int | None = None

    def __len__(self) -> int:
        """Number of events E."""
        return len(self.items)

    def __repr__(self) -> str:
        return f"History(user {self.user_id!r}, {len(self):,} events, {time_span(self.timestamps)})"

    def keep(self, which: BoolArray | slice) -> History:
        """The same user with only the events that ``which`` (a (E,) mask or a slice) selects."""
        return replace(
            self,
            items=self.items[which],
            behaviors=self.behaviors[which],
            timestamps=self.timestamps[which],
            values=self.values[which],
        )

    def item_ids(self) -> list[str]:
        """(E,) item ids as text."""
        return self.code_names.items.take(pa.array(self.items)).to_pylist()

    def events(self, titles: Mapping[str, str] | None = None) -> list[Event]:
        """The history as `Event` objects, named from ``titles`` (item id -> title) if given."""
        titles = titles or {}
        return [
            Event(
                item=item,
                behavior=self.code_names.behaviors[behavior],
                timestamp=int(time),
                value=None if np.isnan(value) else float(value),
                title=titles.get(item, ""),
            )
            for item, behavior, time, value in zip(
                self.item_ids(), self.behaviors, self.timestamps, self.values, strict=True
            )
        ]

    @classmethod
    def from_events(
        cls, user_id: str, events: Iterable[Event], user: Mapping[str, str] | None = None
    ) -> History:
        """A history of `Event` objects, sorted by time; ties keep the order given."""
        events = list(events)
        for event in events:
            check_type(DataError, "event", event, Event, expected="an Event")
            for name in ("item", "behavior"):
                expected = "a text, such as '4'"
                check_type(
                    DataError, f"{name} of an event", getattr(event, name), str, expected=expected
                )
            expected = "Unix time in whole seconds, such as int(moment.timestamp())"
            check_type(
                DataError, "timestamp of an event", event.timestamp, Integral, expected=expected
            )
            number = (Real, type(None))
            check_type(
                DataError, "value of an event", event.value, number, expected="a number or None"
            )
        ordered: Sequence[Event] = sorted(events, key=lambda event: event.timestamp)
        items = list(dict.fromkeys(event.item for event in ordered))
        behaviors = tuple(dict.fromkeys(event.behavior for event in ordered))
        item_code = {item: code for code, item in enumerate(items)}
        return cls(
            user_id=user_id,
            items=np.array([item_code[event.item] for event in ordered], dtype=np.int32),
            behaviors=np.array([behaviors.index(e.behavior) for e in ordered], dtype=np.int32),
            timestamps=np.array([event.timestamp for event in ordered], dtype=np.int64),
            values=np.array(
                [np.nan if e.value is None else e.value for e in ordered], dtype=np.float32
            ),
            code_names=CodeNames(pa.array(items, pa.string()), behaviors),
            user=MappingProxyType(dict(user or {})),
        )


def time_span(timestamps: IntArray) -> str:
    """First and last of some Unix times (N,), for display: '1997-09-20 03:05:10 to ... UTC'."""
    if not len(timestamps):
        return "no time"
    ends = (timestamps.min(), timestamps.max())
    first, last = (str(np.datetime64(int(time), "s")).replace("T", " ") for time in ends)
    return f"{first} to {last} UTC"
