"""What is said of the memory: only what the numbers say, in words of the behaviour."""

# ruff: noqa: RUF001 - typographic signs are part of the sentences.

import numpy as np
import pytest

from llm_influence.influence.influence import Influence


def remembered(make, shares, odds=None, **other):
    titles = [f"Film {place}" for place in range(len(shares))]
    odds = np.zeros(len(shares)) if odds is None else np.array(odds)
    more = {"memory_shares": np.array(shares), "memory_log_odds": odds}
    return make([1.0] * len(shares), titles=titles, **more, **other)


def test_the_event_that_stands_out_is_named_with_its_behaviour(make):
    influence = remembered(make, [0.5, 0.12], behaviors=["cart", "view"], values=[None, None])
    assert influence.to_text().endswith(
        ". 62% of this probability came through transitions and revisits (people who put "
        "“Film 0” in their cart went on to “Star Wars (1977)”), the rest through the "
        "language model."
    )
    assert influence.to_text("zh").endswith(
        "。这一概率的62%来自转移与重访（把“Film 0”加入了购物车的人接着选择了"
        "“Star Wars (1977)”），其余来自语言模型。"
    )


@pytest.mark.parametrize(
    ("shares", "stated", "named"),
    [
        ([0.004, 0.005], False, False),  # below 1% in all
        ([0.02, 0.03], True, False),  # no event causes 10%
        ([0.11, 0.11, 0.11], True, False),  # no event is half of it
        ([0.10, 0.05], True, True),
    ],
)
def test_nothing_is_said_beyond_the_numbers(make, shares, stated, named):
    text = remembered(make, shares).to_text()
    assert ("came through transitions" in text) == stated
    assert ("people who" in text) == named


def test_repeats_associations_and_baselines(make):
    assert "(people who rated “Film 0” came back to it)" in (
        remembered(make, [0.5], target_id="i0").to_text()
    )
    assert "model with associations" in remembered(make, [0.5], [-0.2]).to_text()
    assert "associations" not in remembered(make, [0.5], [0.04]).to_text()
    assert "revisits" not in remembered(make, [0.5], method="random").to_text()
    assert "revisits" not in make([1.0]).to_text()


def test_names_and_behaviours_with_braces_stay_as_they_are(make):
    influence = remembered(make, [0.5], behaviors=["{odd}"], target_name="{0}")
    assert "people who did ‘{odd}’ on “Film 0” went on to “{0}”" in influence.to_text()


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_the_parts_come_back_as_they_were(make, tmp_path, suffix):
    for influence in (remembered(make, [0.5, 0.0], [-0.1, 0.0]), make([1.0])):
        back = Influence.load(influence.save(tmp_path / f"one.{suffix}"))
        np.testing.assert_equal(back.memory_shares, influence.memory_shares)
        np.testing.assert_equal(back.memory_log_odds, influence.memory_log_odds)
        assert back.to_text() == influence.to_text()
