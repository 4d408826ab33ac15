"""Words and codes of time: gaps between events, hour and weekday, which occurrence of an item.

The wall-clock time between events: bucketed for the model, worded for the model and for people.

A model reads time best as a word. The buckets are fine where behaviour is fine (seconds within a
session) and coarse where it is not (years of silence); a bucket's word is its lower edge.

The hour and the day of the week of an event, by the clock of UTC.

A gap says how long ago; these say when: a transfer at four in the morning, a ticket on a Friday.

How often the event's item has been in the history before: what a sequence model cannot count.

Groceries are bought again, and a household's own frequency of an item is hard to beat. Told at each
event which time it is, a model need not add up.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_influence.errors import ConfigError, DataError, choices
from llm_influence.types import BoolArray, IntArray

Language = Literal["en", "zh"]

# Largest first. A month is 30 days and a year 365: calendar length does not matter to a bucket.
_UNITS = (
    ("year", 365 * 86_400),
    ("month", 30 * 86_400),
    ("week", 7 * 86_400),
    ("day", 86_400),
    ("hour", 3_600),
    ("minute", 60),
    ("second", 1),
)
_SECONDS = dict(_UNITS)

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
    [count * _SECONDS[unit] for count, unit in _BUCKETS], dtype=np.int64
)
"""(K,) lower edges of the gap buckets in seconds, increasing; the first is 0, the last is open."""
GAP_EDGES.setflags(write=False)

_FIRST = {"en": "start", "zh": "开始"}
_SHORT = {
    "en": {
        "second": "s",
        "minute": "m",
        "hour": "h",
        "day": "d",
        "week": "w",
        "month": "mo",
        "year": "y",
    },
    "zh": {
        "second": "秒",
        "minute": "分钟",
        "hour": "小时",
        "day": "天",
        "week": "周",
        "month": "个月",
        "year": "年",
    },
}

# From this many on, one rounded unit is exact enough ("4 hours", not "4 hours 12 minutes").
_ONE_UNIT_FROM = 4


def gap_codes(timestamps: IntArray, starts: IntArray | None = None) -> npt.NDArray[np.int32]:
    """Bucket the time from each event to the next.

    Args:
        timestamps: (E,) Unix seconds, never decreasing within a history. E may be 0.
        starts: Places where a history begins, when ``timestamps`` holds several one after the
            other; default: one history.

    Returns:
        (E,) int32 codes: 0 for the first event, which has no event before it, and ``1 + k`` where
        the gap since the event before is in bucket ``k``, ``GAP_EDGES[k] <= gap < GAP_EDGES[k+1]``.

    Raises:
        DataError: An event is older than the event before it.
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
        raise DataError(
            f"event {place} is {-int(gaps[place])} s older than event {place - 1}",
            where="timestamps of a history",
            expected="events in time order, oldest first",
            fix="sort the events by timestamp before their gaps are measured",
        )
    codes = np.searchsorted(GAP_EDGES, gaps, side="right")
    return np.where(first, 0, codes).astype(np.int32)


def query_codes(last: IntArray, asked: IntArray, known: BoolArray) -> npt.NDArray[np.int64]:
    """Bucket the time from the last event to the moment a question is asked.

    Args:
        last: (N,) Unix seconds of the last event.
        asked: (N,) Unix seconds of the question.
        known: (N,) False where there is no event, or nobody knows when the question is asked.

    Returns:
        (N,) codes as in `gap_codes`: 0 where the gap is not known.

    Raises:
        DataError: A question is asked before the last event.
    """
    gaps = np.where(known, np.asarray(asked, np.int64) - np.asarray(last, np.int64), 0)
    if len(gaps) and gaps.min() < 0:
        raise DataError(
            f"the question is asked {-int(gaps.min())} s before the last event",
            where="query_time of a history",
            expected="a moment after every event of the history",
            fix="leave later events out, or set query_time to the moment of the question",
        )
    codes = np.searchsorted(GAP_EDGES, gaps, side="right")
    return np.where(known, codes, 0).astype(np.int64)


def gap_words(language: Language = "en") -> tuple[str, ...]:
    """The word of every gap code, shortest form: ``"start"``, ``"0s"``, ``"2m"``, ``"3mo"``.

    Args:
        language: ``"en"`` or ``"zh"``.

    Returns:
        ``len(GAP_EDGES) + 1`` distinct words, by code.

    Raises:
        ConfigError: No words are known in that language.
    """
    short = _SHORT[_known(language)]
    return (_FIRST[language], *(f"{count}{short[unit]}" for count, unit in _BUCKETS))


def human_duration(seconds: int, language: Language = "en") -> str:
    """Say a length of time as people do: ``"2 hours"``, ``"1 day 3 hours"``, ``"2小时"``.

    Up to three of a unit are followed by the next unit, rounded down; four or more are rounded to
    the unit itself.

    Args:
        seconds: A length of time, 0 or more.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ConfigError: No words are known in that language.
        DataError: The length is negative.
    """
    _known(language)
    if seconds < 0:
        raise DataError(
            f"a length of time of {seconds} s",
            where="human_duration",
            expected="0 seconds or more",
            fix="subtract the earlier time from the later one",
        )
    place = _leading_unit(seconds)
    size = _UNITS[place][1]
    if seconds // size >= _ONE_UNIT_FROM:
        # Rounding may fill the next larger unit: 6.6 days are "1 week".
        seconds = (seconds + size // 2) // size * size
        place = _leading_unit(seconds)
        size = _UNITS[place][1]
        return _count_words(seconds // size, _UNITS[place][0], language)
    parts = [_count_words(seconds // size, _UNITS[place][0], language)]
    if place + 1 < len(_UNITS):
        next_unit, next_size = _UNITS[place + 1]
        if rest := seconds % size // next_size:
            parts.append(_count_words(rest, next_unit, language))
    return ("" if language == "zh" else " ").join(parts)


def _leading_unit(seconds: int) -> int:
    """Place in ``_UNITS`` of the largest unit that fits; the second where none does."""
    fitting = (place for place, (_, size) in enumerate(_UNITS) if seconds >= size)
    return next(fitting, len(_UNITS) - 1)


def _count_words(count: int, unit: str, language: Language) -> str:
    if language == "zh":
        return f"{count}{_SHORT['zh'][unit]}"
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _known(language: str) -> str:
    if language not in _SHORT:
        raise ConfigError(
            f"language {language!r}",
            where="words for time",
            expected=choices(_SHORT, language),
            fix="name one of these languages",
        )
    return language


HOURS, WEEKDAYS = 24, 7
_HOUR, _DAY = 3_600, 86_400
_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""

_WEEKDAY_WORDS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "zh": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
}


def hour_codes(timestamps: IntArray) -> npt.NDArray[np.int32]:
    """(E,) hours of the day, 0 to 23, of (E,) Unix seconds."""
    return (np.asarray(timestamps, np.int64) // _HOUR % HOURS).astype(np.int32)


def weekday_codes(timestamps: IntArray) -> npt.NDArray[np.int32]:
    """(E,) days of the week, 0 Monday to 6 Sunday, of (E,) Unix seconds."""
    days = np.asarray(timestamps, np.int64) // _DAY
    return ((days + _EPOCH_WEEKDAY) % WEEKDAYS).astype(np.int32)


def hour_words(language: Language = "en") -> tuple[str, ...]:
    """The word of every hour: ``"04:00"``, ``"4点"``."""
    return tuple(f"{hour}点" if language == "zh" else f"{hour:02}:00" for hour in range(HOURS))


def weekday_words(language: Language = "en") -> tuple[str, ...]:
    """The word of every day of the week, Monday first."""
    return _WEEKDAY_WORDS[language]


TIMES_EDGES: npt.NDArray[np.int64] = np.array([0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30], np.int64)
"""(K,) lower edges of the buckets of earlier events with the same item; the last is open."""
TIMES_EDGES.setflags(write=False)


def times_codes(items: IntArray, lengths: IntArray) -> npt.NDArray[np.int32]:
    """Bucket how many earlier events of its history have the event's item.

    Args:
        items: (S,) item codes of all histories, one after the other, each in order of time.
        lengths: (N,) events of each history.

    Returns:
        (S,) codes: places in `TIMES_EDGES`.
    """
    histories = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((items, histories))  # stable: equal ones stay in order of time
    sorted_items, sorted_histories = items[order], histories[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(sorted_items) != 0) | (np.diff(sorted_histories) != 0)
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(begins, places, 0))
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[order] = places - first
    return (np.searchsorted(TIMES_EDGES, earlier, side="right") - 1).astype(np.int32)


def times_words(language: Language = "en") -> tuple[str, ...]:
    """The word of every bucket: ``"time 1"``, ``"第1次"``; the lower edge of what it covers."""
    said = "第{}次" if language == "zh" else "time {}"
    return tuple(said.format(edge + 1) for edge in TIMES_EDGES)
