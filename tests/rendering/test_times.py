"""Which time it is that an item occurs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.rendering.time_words import TIMES_EDGES, times_codes, times_words


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
def test_every_bucket_has_its_own_word(language):
    words = times_words(language)
    assert len(words) == len(TIMES_EDGES) == len({*words})
    assert words[1] == {"en": "time 2", "zh": "第2次"}[language]
