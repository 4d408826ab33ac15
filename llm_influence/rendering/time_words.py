"""Codes and words of time: gaps, hours, weekdays, and how often an item has occurred before.

Times are bucketed, because a language model reads a word better than a number. Buckets are fine
where behaviour is fine (seconds within a session) and coarse where it is not (years of silence).
The word of a bucket is its lower edge.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_influence.errors import ConfigError, DataError, unknown
from llm_influence.types import BoolArray, IntArray

Language = Literal["en", "zh"]

_NAMES = ("year", "month", "week", "day", "hour", "minute", "second")
_SIZES = (365 * 86_400, 30 * 86_400, 7 * 86_400, 86_400, 3_600, 60, 1)
"""Units of time in seconds, largest first; months and years are rounded to whole days."""
_UNITS = tuple(zip(_NAMES, _SIZES, strict=True))
_BUCKETS = (
    *((count, "second") for count in (0, 1, 2, 5, 10, 20, 30)),
    *((count, "minute") for count in (1, 2, 3, 5, 10, 15, 20, 30, 45)),
    *((count, "hour") for count in (1, 2, 3, 4, 6, 8, 12, 18)),
    *((count, "day") for count in (1, 2, 3, 4, 5, 6)),
    *((count, "week") for count in (1, 2, 3)),
    *((count, "month") for count in (1, 2, 3, 4, 6, 9)),
    *((count, "year") for count in (1, 2, 3, 5)),
)
GAP_EDGES: npt.NDArray[np.int64] = np.array(
    [count * dict(_UNITS)[unit] for count, unit in _BUCKETS], dtype=np.int64
)
"""(K,) lower edges of the gap buckets in seconds, increasing; the first is 0, the last is open."""
GAP_EDGES.setflags(write=False)
TIMES_EDGES: npt.NDArray[np.int64] = np.array([0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30], np.int64)
"""(K,) lower edges of the buckets of earlier events with the same item; the last is open."""
TIMES_EDGES.setflags(write=False)
HOURS, WEEKDAYS = 24, 7

_FIRST = {"en": "start", "zh": "开始"}
_SHORT = {
    "en": dict(zip(_NAMES, ("y", "mo", "w", "d", "h", "m", "s"), strict=True)),
    "zh": dict(zip(_NAMES, ("年", "个月", "周", "天", "小时", "分钟", "秒"), strict=True)),
}
_WEEKDAY_WORDS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "zh": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
}
_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""
_ONE_UNIT_FROM = 4
"""From so many units on, one unit is exact enough: "4 hours", not "4 hours 12 minutes"."""


def gap_codes(timestamps: IntArray, starts: IntArray | None = None) -> npt.NDArray[np.int32]:
    """(E,) codes of the gap before each event; ``timestamps`` (E,) never decrease in a history.

    The first event of a history has code 0. Code ``1 + k`` is a gap in bucket ``k``, with
    ``GAP_EDGES[k] <= gap < GAP_EDGES[k+1]``. ``starts`` are the positions where a history begins,
    for several histories one after the other; default: one history.
    """
    first = np.zeros(len(timestamps), dtype=bool)
    if starts is not None:
        first[starts] = True
    elif len(first):
        first[0] = True
    gaps = np.diff(np.asarray(timestamps, dtype=np.int64), prepend=0)
    gaps[first] = 0
    if len(gaps) and gaps.min() < 0:
        place = int(np.argmax(gaps < 0))
        found = f"event {place} is {-int(gaps[place])} s older than event {place - 1}"
        expected = "events in time order, oldest first"
        fix = "sort the events by timestamp before their gaps are measured"
        raise DataError(found, where="timestamps of a history", expected=expected, fix=fix)
    codes = np.searchsorted(GAP_EDGES, gaps, side="right")
    return np.where(first, 0, codes).astype(np.int32)


def query_codes(last: IntArray, query: IntArray, known: BoolArray) -> npt.NDArray[np.int64]:
    """(N,) codes, as in `gap_codes`, of the time from the (N,) last events to the query times.

    ``known`` (N,) is False where there is no event or no query time; the code is then 0.
    """
    gaps = np.where(known, np.asarray(query, np.int64) - np.asarray(last, np.int64), 0)
    if len(gaps) and gaps.min() < 0:
        found = f"the query time is {-int(gaps.min())} s before the last event"
        expected = "a time after every event of the history"
        fix = "leave out later events, or set a later query_time"
        raise DataError(found, where="query_time of a history", expected=expected, fix=fix)
    codes = np.searchsorted(GAP_EDGES, gaps, side="right")
    return np.where(known, codes, 0).astype(np.int64)


def hour_codes(timestamps: IntArray) -> npt.NDArray[np.int32]:
    """(E,) hours of the day in UTC, 0 to 23, of (E,) Unix seconds."""
    return (np.asarray(timestamps, np.int64) // 3_600 % HOURS).astype(np.int32)


def weekday_codes(timestamps: IntArray) -> npt.NDArray[np.int32]:
    """(E,) days of the week in UTC, 0 Monday to 6 Sunday, of (E,) Unix seconds."""
    days = np.asarray(timestamps, np.int64) // 86_400
    return ((days + _EPOCH_WEEKDAY) % WEEKDAYS).astype(np.int32)


def times_codes(items: IntArray, lengths: IntArray) -> npt.NDArray[np.int32]:
    """(S,) positions in `TIMES_EDGES` of the number of earlier events with the event's item.

    ``items`` (S,) are codes of N histories of these ``lengths`` (N,), each in time order.
    """
    histories = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((items, histories))  # stable: equal items stay in time order
    sorted_items, sorted_histories = items[order], histories[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(sorted_items) != 0) | (np.diff(sorted_histories) != 0)
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(begins, places, 0))
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[order] = places - first
    return (np.searchsorted(TIMES_EDGES, earlier, side="right") - 1).astype(np.int32)


def gap_words(language: Language = "en") -> tuple[str, ...]:
    """The ``len(GAP_EDGES) + 1`` words of gaps by code: ``"start"``, ``"0s"``, ``"2m"``..."""
    short = _short(language)
    return (_FIRST[language], *(f"{count}{short[unit]}" for count, unit in _BUCKETS))


def hour_words(language: Language = "en") -> tuple[str, ...]:
    """The 24 words of hours: ``"04:00"``, ``"4点"``."""
    return tuple(f"{hour}点" if language == "zh" else f"{hour:02}:00" for hour in range(HOURS))


def weekday_words(language: Language = "en") -> tuple[str, ...]:
    """The 7 words of weekdays, Monday first."""
    return _WEEKDAY_WORDS[language]


def times_words(language: Language = "en") -> tuple[str, ...]:
    """The words of `times_codes` by code: ``"time 1"``, ``"第1次"``."""
    pattern = "第{}次" if language == "zh" else "time {}"
    return tuple(pattern.format(edge + 1) for edge in TIMES_EDGES)


def human_duration(seconds: int, language: Language = "en") -> str:
    """Write a duration for people: ``"2 hours"``, ``"1 day 3 hours"``, ``"2小时"``.

    Up to three of a unit are followed by the next unit, rounded down. Four or more are rounded to
    the unit itself.
    """
    _short(language)
    if seconds < 0:
        found, fix = f"a duration of {seconds} s", "subtract the earlier time from the later one"
        raise DataError(found, where="human_duration", expected="0 seconds or more", fix=fix)
    size = _UNITS[_leading_unit(seconds)][1]
    if seconds // size >= _ONE_UNIT_FROM:
        seconds = (seconds + size // 2) // size * size  # may fill a larger unit: 6.6 days, 1 week
    place = _leading_unit(seconds)
    parts: list[str] = []
    for unit, size in _UNITS[place : place + 2]:
        count, seconds = divmod(seconds, size)
        if language == "zh":
            words = f"{count}{_SHORT['zh'][unit]}"
        else:
            words = f"{count} {unit}" if count == 1 else f"{count} {unit}s"
        if count or not parts:
            parts.append(words)
    return ("" if language == "zh" else " ").join(parts)


def _leading_unit(seconds: int) -> int:
    """Position in ``_UNITS`` of the largest unit that fits; seconds if none does."""
    fitting = (place for place, (_, size) in enumerate(_UNITS) if seconds >= size)
    return next(fitting, len(_UNITS) - 1)


def _short(language: str) -> dict[str, str]:
    if language not in _SHORT:
        raise unknown(ConfigError, "language", language, _SHORT, where="words for time")
    return _SHORT[language]
