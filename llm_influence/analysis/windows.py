"""Calendar windows, UTC, into which predictions fall."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from llm_influence.analysis.buckets import DAY
from llm_influence.errors import ConfigError, DataError, choices

NAMED = ("day", "week", "month")
MOST_WINDOWS = 200
"""More say little of each, and make the answer long."""
FEW, WEEK = 31, 7
"""Without a wish: days while there are at most `FEW`, then weeks, then months."""
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows one after another.

    Attributes:
        kind: ``day``, ``week`` (from Monday), ``month``, or ``N days``.
        starts: (W,) first day of each.
        sql: Expression over ``{0}``, Unix seconds, that gives the place of its window.
    """

    kind: str
    starts: tuple[date, ...]
    sql: str

    def place_of(self, day: date) -> int:
        """Which window a day falls into; -1 before the first."""
        return sum(start <= day for start in self.starts) - 1


def windows_of(first: int, last: int, asked: str | None = None) -> Windows:
    """Cut the time from ``first`` to ``last``, Unix seconds, into windows.

    Args:
        first: The first prediction.
        last: The last one.
        asked: ``day``, ``week``, ``month``, or a number of days; default: by the time covered.

    Raises:
        ConfigError: ``asked`` is none of these, or gives more than `MOST_WINDOWS`.
        DataError: It was asked for, and everything falls into one window.
    """
    days = first // DAY, last // DAY
    kind = asked or _by_length(days[1] - days[0] + 1)
    if kind == "month":
        begin, end = (_month(day) for day in days)
        starts = [date(number // 12, number % 12 + 1, 1) for number in range(begin, end + 1)]
        moment = "make_timestamp({0}::BIGINT * 1000000)"
        sql = f"(year({moment}) * 12 + month({moment}) - {begin + 1})"
    else:
        size, origin = _size(kind), days[0]
        if kind == "week":
            origin -= (days[0] + 3) % WEEK  # 1 January 1970 was a Thursday
        count = (days[1] - origin) // size + 1
        _refuse_many(count, kind)
        starts = [EPOCH + timedelta(origin + size * place) for place in range(count)]
        sql = f"floor(({{0}} - {origin * DAY}) / {size * DAY})"
    _refuse_many(len(starts), kind)
    if asked and len(starts) == 1:
        raise DataError(
            f"all predictions fall into one window, the {kind} from {starts[0]}",
            where="drift",
            expected="at least two windows to compare",
            fix="narrow --window, or explain predictions of other times",
        )
    return Windows(kind, tuple(starts), f"{sql}::INTEGER")


def _by_length(days: int) -> str:
    if days <= FEW:
        return "day"
    return "week" if days <= FEW * WEEK else "month"


def _size(kind: str) -> int:
    """Days of a window."""
    if kind in ("day", "week"):
        return 1 if kind == "day" else WEEK
    number = kind.removesuffix(" days")
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            f"window {kind!r}",
            where="--window",
            expected=choices(NAMED, kind) + ", or a number of days",
            fix="write it as week, or 14",
        )
    return int(number)


def _month(day: int) -> int:
    moment = EPOCH + timedelta(day)
    return moment.year * 12 + moment.month - 1


def _refuse_many(count: int, kind: str) -> None:
    if count > MOST_WINDOWS:
        raise ConfigError(
            f"{count:,} windows of a {kind.removesuffix(' days')}",
            where="--window",
            expected=f"at most {MOST_WINDOWS}",
            fix="ask for wider windows, as month",
        )
