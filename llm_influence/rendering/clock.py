"""The hour and the day of the week of an event, by the clock of UTC.

A gap says how long ago; these say when: a transfer at four in the morning, a ticket on a Friday.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_influence.rendering.gaps import Language
from llm_influence.types import IntArray

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
