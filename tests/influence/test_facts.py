"""The quality card in words, and numbers as text."""

# ruff: noqa: RUF001 - typographic signs are part of the words.

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.influence.facts import correlation, percent, signed


def test_what_was_measured_is_said_and_nothing_else(make):
    assert make([1.0], gap=0.004).quality.words() == [
        "removal mask",
        "completeness gap 0.40%",
        "3 evaluations",
        "seed 7",
    ]
    measured = {"largest_standard_error": 0.25, "converged": False, "card_evaluations": 1}
    measured |= {"lds": 0.789, "fidelity_masks": 16, "agreement": -0.5, "agreement_with": "random"}
    measured |= {"bfloat16_error": 0.012}
    assert make([1.0], card=measured).quality.words()[4:] == [
        "standard errors up to 0.25",
        "read in bfloat16, off by up to 0.012",
        "did not converge",
        "linear fidelity +0.79 on 16 sets",
        "agreement with random −0.50",
        "1 evaluation for this card",
    ]


def test_only_a_perfect_correlation_is_one():
    assert [correlation(value) for value in (1.0, 0.999, -0.999, -1.0, 0.001)] == [
        "+1.00",
        "+0.99",
        "−0.99",
        "−1.00",
        "0",
    ]


@given(st.floats(0, 1))
def test_a_percentage_is_never_rounded_to_impossible_or_certain(share):
    assert (percent(share) == "0%") == (share == 0)
    assert (percent(share) == "100%") == (share == 1)
    assert share == 0 or percent(-share) == "−" + percent(share)


@given(st.floats(-1e9, 1e9))
def test_a_score_keeps_its_sign_and_its_size(score):
    written = signed(score)
    assert written[0] == ("0" if score == 0 else "+" if score > 0 else "−")
    assert np.isclose(float(written.replace("−", "-")), score, rtol=0.051, atol=0)
