"""Codes and words of gaps, hours, weekdays and occurrences of an item."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.errors import ConfigError, DataError
from llm_influence.rendering.time_words import (
    GAP_EDGES,
    HOURS,
    TIMES_EDGES,
    WEEKDAYS,
    gap_codes,
    gap_words,
    hour_codes,
    hour_words,
    human_duration,
    query_codes,
    times_codes,
    times_words,
    weekday_codes,
    weekday_words,
)

HOUR, DAY = 3_600, 86_400


def test_a_gap_is_worded_by_the_lower_edge_of_its_bucket():
    times = np.cumsum([1_000, 0, 59, 60, 119, 2 * HOUR, 40 * DAY, 4_000 * DAY])
    words = [gap_words("en")[code] for code in gap_codes(times)]
    assert words == ["start", "0s", "30s", "1m", "1m", "2h", "1mo", "5y"]


def test_chinese_words_stand_at_the_same_codes():
    times = np.cumsum([0, 0, 3 * HOUR, 2 * DAY, 7 * DAY, 90 * DAY, 365 * DAY])
    words = [gap_words("zh")[code] for code in gap_codes(times)]
    assert words == ["开始", "0秒", "3小时", "2天", "1周", "3个月", "1年"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_code_has_its_own_word(language):
    words = gap_words(language)
    assert len(words) == len(GAP_EDGES) + 1 == len(set(words))
    assert (np.diff(GAP_EDGES) > 0).all()


@given(st.lists(st.integers(0, 10 * 365 * DAY), max_size=20))
def test_every_gap_lies_in_its_bucket(gaps):
    codes = gap_codes(np.cumsum([5, *gaps]))
    upper = np.append(GAP_EDGES[1:], np.iinfo(np.int64).max)
    assert codes.dtype == np.int32
    assert codes[0] == 0
    for gap, code in zip(gaps, codes[1:], strict=True):
        assert GAP_EDGES[code - 1] <= gap < upper[code - 1]


def test_an_empty_history_has_no_codes():
    assert gap_codes(np.array([], dtype=np.int64)).shape == (0,)


def test_time_running_backwards_is_refused_with_its_place():
    with pytest.raises(DataError, match="event 2 is 3 s older than event 1"):
        gap_codes(np.array([1, 9, 6]))


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0, "0 seconds", "0秒"),
        (1, "1 second", "1秒"),
        (45, "45 seconds", "45秒"),
        (2 * HOUR, "2 hours", "2小时"),
        (DAY, "1 day", "1天"),
        (DAY + 3 * HOUR, "1 day 3 hours", "1天3小时"),
        (4 * HOUR + 600, "4 hours", "4小时"),
        (6 * DAY + 20 * HOUR, "1 week", "1周"),
        (21 * DAY, "3 weeks", "3周"),
        (400 * DAY, "1 year 1 month", "1年1个月"),
    ],
)
def test_durations_for_people(seconds, english, chinese):
    assert human_duration(seconds) == english
    assert human_duration(seconds, "zh") == chinese


def test_unknown_language_and_negative_length_are_refused():
    with pytest.raises(ConfigError, match="'en'"):
        gap_words("fr")
    with pytest.raises(DataError, match="-1 s"):
        human_duration(-1)


def test_a_query_time_has_the_code_of_its_gap_and_none_before_the_last_event():
    known = np.array([True, True, False])
    codes = query_codes(np.array([10, 10, 10]), np.array([10, 10 + 2 * HOUR, 0]), known)
    assert [gap_words()[code] for code in codes] == ["0s", "2h", "start"]
    with pytest.raises(DataError, match="3 s before the last event"):
        query_codes(np.array([10]), np.array([7]), np.ones(1, bool))


@given(st.lists(st.integers(-(10**9), 4 * 10**9), max_size=20))
def test_hours_and_weekdays_are_those_of_the_calendar(seconds):
    moments = [datetime.fromtimestamp(second, UTC) for second in seconds]
    times = np.array(seconds, dtype=np.int64)
    assert hour_codes(times).tolist() == [moment.hour for moment in moments]
    assert weekday_codes(times).tolist() == [moment.weekday() for moment in moments]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_hour_and_weekday_has_its_own_word(language):
    assert len({*hour_words(language)}) == len(hour_words(language)) == HOURS
    assert len({*weekday_words(language)}) == len(weekday_words(language)) == WEEKDAYS


@given(st.lists(st.lists(st.integers(0, 3), max_size=50), max_size=4))
def test_every_event_counts_the_earlier_ones_of_its_own_history(histories):
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    codes = times_codes(items, lengths)
    upper = np.append(TIMES_EDGES[1:], len(items) + 1)
    counts = [history[:n].count(history[n]) for history in histories for n in range(len(history))]
    for count, code in zip(counts, codes, strict=True):
        assert TIMES_EDGES[code] <= count < upper[code]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_count_of_occurrences_has_its_own_word(language):
    words = times_words(language)
    assert len(words) == len(TIMES_EDGES) == len({*words})
    assert words[1] == {"en": "time 2", "zh": "第2次"}[language]
