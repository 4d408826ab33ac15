"""Bins of values, and codes of items, behaviours and user features."""

import numpy as np
import pytest

from llm_influence.errors import SchemaError
from llm_influence.rendering.vocabulary import ValueBins, Vocabulary
from llm_influence.types import Event, History


def test_few_distinct_values_keep_their_own_words():
    bins = ValueBins.fit(np.array([5, 1, np.nan, 3, 1], dtype=np.float32))
    assert bins.words() == ["", "1", "3", "5"]
    assert bins.codes(np.array([np.nan, 1, 3, 5, 4.9, 0, 9])).tolist() == [0, 1, 2, 3, 2, 1, 3]


def test_many_distinct_values_are_binned_by_quantiles():
    amounts = np.arange(1000, dtype=np.float32)
    codes = ValueBins.fit(amounts).codes(amounts)
    assert (np.diff(codes) >= 0).all()
    counts = np.bincount(codes)[1:]
    assert len(counts) == 16
    assert counts.max() - counts.min() <= 2


def test_a_log_without_values_has_no_word_for_them():
    assert ValueBins.fit(np.full(3, np.nan, np.float32)).words() == [""]


def test_codes_of_a_history_typed_by_hand_are_the_models_own(log):
    vocabulary = Vocabulary.fit(log)
    typed = History.from_events("new", [Event("i7", "purchase", 5), Event("i2", "cart", 9)])
    codes = vocabulary.columns([typed]).codes
    assert [log.catalogue.ids[int(code)].as_py() for code in codes["item"]] == ["i7", "i2"]
    assert [vocabulary.behaviors[code] for code in codes["behavior"]] == ["purchase", "cart"]


def test_a_user_feature_that_the_log_lacks_is_refused(log):
    with pytest.raises(SchemaError, match=r"'agee'.*did you mean 'age'"):
        Vocabulary.fit(log, ["agee"])
