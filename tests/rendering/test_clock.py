"""Hours and weekdays of events."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.rendering.time_words import (
    HOURS,
    WEEKDAYS,
    hour_codes,
    hour_words,
    weekday_codes,
    weekday_words,
)


@given(st.lists(st.integers(-(10**9), 4 * 10**9), max_size=20))
def test_hours_and_weekdays_are_those_of_the_calendar(seconds):
    moments = [datetime.fromtimestamp(each, UTC) for each in seconds]
    times = np.array(seconds, dtype=np.int64)
    assert hour_codes(times).tolist() == [moment.hour for moment in moments]
    assert weekday_codes(times).tolist() == [moment.weekday() for moment in moments]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_hour_and_weekday_has_its_own_word(language):
    assert len({*hour_words(language)}) == len(hour_words(language)) == HOURS
    assert len({*weekday_words(language)}) == len(weekday_words(language)) == WEEKDAYS
