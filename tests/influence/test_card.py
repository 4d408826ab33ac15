"""The card in words."""

# ruff: noqa: RUF001 - typographic signs are part of the words.

from llm_influence.influence.facts import card_words, correlation


def test_what_was_measured_is_said_and_nothing_else(make):
    assert card_words(make([1.0], gap=0.004)) == [
        "removal mask",
        "completeness gap 0.40%",
        "3 evaluations",
        "seed 7",
    ]
    measured = {"largest_standard_error": 0.25, "converged": False, "card_evaluations": 1}
    measured |= {"lds": 0.789, "fidelity_masks": 16, "agreement": -0.5, "agreement_with": "random"}
    measured |= {"bfloat16_error": 0.012}
    assert card_words(make([1.0], card=measured))[4:] == [
        "standard errors up to 0.25",
        "read in bfloat16, off by up to 0.012",
        "did not converge",
        "linear fidelity +0.79 on 16 sets",
        "agreement with random −0.50",
        "1 pass for this card",
    ]


def test_only_a_perfect_correlation_is_one():
    assert [correlation(value) for value in (1.0, 0.999, -0.999, -1.0, 0.001)] == [
        "+1.00",
        "+0.99",
        "−0.99",
        "−1.00",
        "0",
    ]
