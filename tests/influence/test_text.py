"""A sentence says what is so: every name and number in it belongs to an event that it may name."""

# ruff: noqa: RUF001 - typographic signs are part of the sentences.

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.errors import ConfigError
from llm_influence.influence.facts import percent, plain, signed
from llm_influence.influence.slate_change import SlateChange

BEHAVIORS = ["click", "view", "cart", "purchase", "rate", "favourite", "escalate", "{odd}"]
scores = st.lists(
    st.one_of(st.just(0.0), st.floats(-5, 5).filter(lambda x: abs(x) > 1e-9)),
    min_size=1,
    max_size=12,
)


def examples(make):
    titles = ["Alien (1979)", "Return of the Jedi (1983)", "Fargo (1996)"]
    return make([-0.4, 1.23, 0.05], titles=titles, values=[2.0, 5.0, 4.0])


def test_english(make):
    assert examples(make).to_text() == (
        "“Star Wars (1977)” is predicted (3.2%) mostly because you rated “Return of the Jedi "
        "(1983)” 5 (1 day earlier, +1.23 log-odds); “Alien (1979)”, which you rated 2 "
        "(2 days earlier, −0.40), speaks against it."
    )


def test_chinese(make):
    assert examples(make).to_text("zh") == (
        "预测“Star Wars (1977)”（概率3.2%），主要因为你给“Return of the Jedi (1983)”打了5分"
        "（此前1天，对数几率+1.23）；而你打了2分的“Alien (1979)”（此前2天，−0.40）起反作用。"
    )


def test_recommended_is_said_only_on_request(make):
    assert "recommended" not in examples(make).to_text()
    assert "is recommended (3.2%)" in examples(make).to_text(recommended=True)
    assert "推荐" in examples(make).to_text("zh", recommended=True)


def test_a_slate_is_a_list_without_a_probability(make):
    slate = {"target": "slate", "target_name": "top 4: A; B; C; …", "prediction": float("nan")}
    influence = make([-0.1, 0.25], **slate)
    assert influence.to_text() == (
        "The list “top 4: A; B; C; …” stands because you rated “Film 1” 4 (your latest action, "
        "+0.25 NDCG); “Film 0”, which you rated 4 (1 day earlier, −0.10), speaks against it."
    )
    assert influence.to_text("zh") == (
        "得出列表“top 4: A; B; C; …”，因为你给“Film 1”打了4分（最近一次行为，NDCG+0.25）；"
        "而你打了4分的“Film 0”（此前1天，−0.10）起反作用。"
    )
    against = make([-1.0, -2.0], **slate).to_text()
    assert against.startswith("Your actions speak more against the list “top 4: A; B; C; …” than")
    assert "–" not in influence._repr_html_()


def test_a_part_of_the_whole_only_where_the_scores_add_up(make):
    assert "+2.00 of +3.00 log-odds" in make([1.0, 2.0]).to_text()
    assert " of " not in make([1.0, 2.0], gap=0.2).to_text()


@pytest.mark.parametrize(
    ("scores", "english", "chinese"),
    [
        ([0.0], "Your only action does not move", "你唯一的行为没有影响"),
        ([0.0, 0.0], "None of your 2 actions moves", "2次行为都没有影响"),
        ([-1.0], "Your only action speaks against", "你唯一的行为不利于"),
        ([-1.0, -2.0], "none speaks for it", "没有一次行为支持它"),
        ([-1.0, 0.5], "speak more against", "弊大于利"),
        ([-1.0, 1.0], "as much for", "利弊相当"),
        ([1.0], "your only action, +1.00", "唯一的行为，"),
    ],
)
def test_histories_that_do_not_support(make, scores, english, chinese):
    assert english in make(scores).to_text()
    assert chinese in make(scores).to_text("zh")


def test_shares_are_never_called_support(make):
    for language, claims in (("en", ("because", "odds")), ("zh", ("因为", "对数几率"))):
        for method in ("attention_rollout", "saliency", "random", "recency"):
            text = make([0.7, 0.1, 0.2], units="share", method=method).to_text(language)
            assert not any(claim in text for claim in claims)
    text = make([0.7, 0.1, 0.2], units="share", method="attention_rollout").to_text()
    assert "looked mostly at “Film 0”" in text
    assert "70% of attention" in text


def test_a_baseline_never_gives_a_reason(make):
    text = make([0.7, 0.1], method="random").to_text()
    assert "because" not in text
    assert "baseline method ‘random’" in text


def test_behaviour_and_contrast_targets(make):
    behavior = make([1.0], target="behavior", target_id="purchase", target_name="purchase")
    assert behavior.to_text().startswith("‘purchase’ is predicted as the next action (3.2%)")
    contrast = make([1.0], target="contrast", target_name="Alien over Fargo")
    assert contrast.to_text().startswith("“Alien over Fargo” is predicted (3.2%) because")


def test_the_latest_event_and_its_ties_are_told_apart(make):
    text = make([1.0, 1.0, -1.0], times=[5, 9, 9]).to_text()
    assert "(at the same moment as your latest action, +1.00" in text
    assert "(your latest action, −1.00)" in text


@given(data=st.data(), units=st.sampled_from(["target", "share"]), most=st.integers(1, 3))
def test_every_name_and_number_is_of_an_event_that_may_be_named(make, data, units, most):
    values = data.draw(scores)
    count = len(values)
    influence = make(
        values,
        units=units,
        titles=[f"N{place}n" for place in range(count)],
        behaviors=data.draw(st.lists(st.sampled_from(BEHAVIORS), min_size=count, max_size=count)),
        values=data.draw(
            st.lists(st.sampled_from([None, 1.5, 4.0]), min_size=count, max_size=count)
        ),
        gap=data.draw(st.sampled_from([0.0, 0.5])),
    )
    written = percent if units == "share" else signed
    for language in ("en", "zh"):
        text = influence.to_text(language, most=most)
        named = [int(place) for place in re.findall(r"N(\d+)n", text)]
        assert len(named) == len(set(named))
        positive = [place for place in named if values[place] > 0]
        assert len(positive) <= most
        assert len(named) - len(positive) <= most
        if units == "share":
            assert named == positive
        # Of the named events, none is weaker than an event of its side that is not named.
        strongest = sorted((v for v in values if v > 0), reverse=True)
        assert [values[place] for place in positive] == strongest[: len(positive)]
        assert bool(positive) == bool(strongest)
        for place in named:
            assert values[place] != 0
            assert written(values[place]) in text
            if (value := influence.events[place].value) is not None:
                assert plain(value) in text
        assert_no_other_number(text, influence, named, written, count)


def assert_no_other_number(text, influence, named, written, count):
    """Every number in the sentence is a score, value, time, the total, or the probability."""
    text = text.replace("Star Wars (1977)", "").replace("3.2%", "", 1)
    text = re.sub(r"N\d+n", "", text)
    allowed = {written(influence.values[place]) for place in named}
    allowed |= {signed(influence.full_value - influence.base_value), str(count)}
    allowed |= {plain(e.value) for e in influence.events if e.value is not None}
    allowed |= {str(days) for days in range(count)} | {"1", "2"}
    for number in re.findall(r"[+−<>]?\d[\d.]*(?:e-\d+)?%?", text):
        assert number.rstrip(".") in allowed, (number, text)


def test_mistakes_are_refused(make):
    with pytest.raises(ConfigError, match="'en'"):
        make([1.0]).to_text("fr")
    with pytest.raises(ConfigError, match="most=0"):
        make([1.0]).to_text(most=0)


def test_only_events_above_their_error_are_named(make):
    errors = np.array([0.3, 0.1, 0.1])
    record = make([0.5, 0.6, -0.1], standard_errors=errors, titles=["A", "B", "C"])
    assert "“B”" in record.to_text()
    assert not {"“A”", "“C”"} & set(re.findall("“.”", record.to_text()))
    nothing = make([0.5, 0.1, -0.1], standard_errors=3 * errors)
    assert nothing.to_text() == (
        "None of your 3 actions stands out for or against “Star Wars (1977)” (3.2%): "
        "every single effect is within its error."
    )
    assert "没有一次" in nothing.to_text("zh")


def test_events_scored_together_are_stated_as_a_sum_with_its_error(make):
    errors = np.array([0.02, 0.02, 0.1, 0.1])
    record = make([0.5, 0.5, 0.6, -0.4], standard_errors=errors, block=(0, 1))
    text = record.to_text()
    assert "above all because you rated “Film 2” 4" in text
    assert text.endswith(" Your 2 older actions together: +1.00 ± 0.078 log-odds.")
    assert not {"“Film 0”", "“Film 1”"} & set(re.findall("“[^”]*”", text))
    assert record.to_text("zh").endswith("你较早的2次行为合计：对数几率+1.00±0.078。")
    others = make([0.5, 0.6, 0.5], block=(0, 2)).to_text()
    assert others.endswith(" Your 2 other actions together: +1.00 log-odds.")
    alone = make([2.0, 2.0, -0.5], block=(0, 1)).to_text()
    assert "(3.2%); no single action stands out for it; “Film 2”, which" in alone


def test_scores_that_do_not_add_up_are_not_added_up(make):
    text = make([1.0, 2.0, -4.0], method="leave_one_out", gap=0.8).to_text()
    assert text == (
        "“Star Wars (1977)” is predicted (3.2%). Most for it is “Film 1”, which you rated 4 (1 day "
        "earlier, +2.00 log-odds), and “Film 0”, which you rated 4 (2 days earlier, +1.00); most "
        "against it is “Film 2”, which you rated 4 (your latest action, −4.00). These numbers do "
        "not add up to the prediction."
    )
    assert "这些数字之和不等于预测值" in make([1.0, 2.0], gap=0.8).to_text("zh")


def test_rank_candidates_and_unread_values(make):
    record = make([1.0], target_rank=3, candidates=1682, unread=("value",))
    assert record.to_text() == (
        "“Star Wars (1977)” is predicted (3.2%, 3rd of 1,682 items) because you rated “Film 0” "
        "(your only action, +1.00 of +1.00 log-odds)."
    )
    assert "概率3.2%，在1,682个物品中排第3" in record.to_text("zh")


def test_an_estimate_that_has_not_settled_says_so(make):
    card = {"converged": False, "largest_standard_error": 0.5}
    record = make([3.0, 0.1], standard_errors=np.array([0.5, 0.5]), card=card)
    assert record.to_text().endswith("has not settled: its errors reach ± 0.98 log-odds.")
    assert "尚未收敛" in record.to_text("zh")


@pytest.mark.parametrize(
    ("change", "english", "chinese"),
    [
        (
            SlateChange(0, 9, 2, ("A", "B", "C", "D"), ("E", "F", "G", "H")),
            " The list would change most without “Film 0”, which you rated 4 (1 day earlier): 5 of "
            "its 9 items would stay, “A”, “B”, “C” and 1 more would leave, and “E”, “F”, “G” and "
            "1 more would enter.",
            "若没有你打了4分的“Film 0”（此前1天），列表变化最大：9项中保留5项，"
            "“A”、“B”、“C”和另外1项退出，“E”、“F”、“G”和另外1项进入。",
        ),
        (
            SlateChange(1, 9, 2, (), ()),
            " Without any single action all 9 items would stay on the list. Its order would change "
            "most without “Film 1”, which you rated 4 (your latest action): 2 of them would be at "
            "another place.",
            "若没有你打了4分的“Film 1”（最近一次行为），次序变化最大：其中2项换了位置。",
        ),
        (
            SlateChange(1, 9, 0, (), ()),
            " No single action changes the list: without any one of them it stays as it is.",
            "没有哪一次行为能单独改变列表：去掉任何一次，列表都不变。",
        ),
    ],
)
def test_the_event_that_changes_a_list_most(make, change, english, chinese):
    slate = {"target": "slate", "prediction": float("nan"), "slate_change": change}
    record = make([-0.1, 0.25], **slate)
    assert record.to_text().endswith(english)
    assert record.to_text("zh").endswith(chinese)
    assert english not in make([0.1, 0.2], method="random", **slate).to_text()
    (first, *names) = change.lines(record.events)
    assert names == [f"leaves: {n}" for n in change.leaves] + [
        f"enters: {n}" for n in change.enters
    ]
    assert ("no single event" in first) == (not change.leaves and not change.moved)


def test_what_the_model_does_not_read_is_never_a_reason(make):
    record = make([0.2, 1.0, -0.5, 0.6], unread=("behavior", "value", "time"))
    assert record.to_text() == (
        "“Star Wars (1977)” is predicted (3.2%) mostly because you have “Film 1” in your history "
        "(2 actions before your latest, +1.00 of +1.30 log-odds) and have “Film 3” in your history "
        "(your latest action, +0.60); “Film 2”, which is in your history (the action before your "
        "latest, −0.50), speaks against it."
    )
    assert "因为你有过“Film 1”（最近一次行为之前第2次，" in record.to_text("zh")
