"""Gap buckets and words for time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.errors import ConfigError, DataError
from llm_influence.rendering.time_words import GAP_EDGES, gap_codes, gap_words, human_duration

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
