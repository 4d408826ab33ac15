"""Decay with known scores: half-life, form, and none where there is none."""

import numpy as np
import pytest

from llm_influence.analysis.decay import curve, decay_of
from llm_influence.analysis.statistics import holm
from tests.analysis.synthetic import cells_of, drawn

HOUR = 3_600


def exponential(age):
    return 0.5 ** (age / (6 * HOUR))


def power(age):
    return (1 + age / HOUR) ** -0.5  # half at 3 hours


@pytest.mark.parametrize(
    ("known_score", "form", "half_life"), [(exponential, "exponential", 6), (power, "power", 3)]
)
def test_the_form_that_was_planted_is_chosen_and_its_half_life_found(known_score, form, half_life):
    user, age, window, noise = drawn(0, users=2000)
    found = decay_of(cells_of(user, age, window, -2 * known_score(age) + 0.3 * noise))
    assert found.trend == "fades"
    assert found.p_value < 1e-6
    assert found.chosen.form.name == form
    low, high = found.chosen.interval
    assert low < half_life * HOUR < high
    assert high < 1.5 * low
    assert found.chosen.half_life == pytest.approx(half_life * HOUR, rel=0.1)
    assert found.chosen.start == pytest.approx(-2, rel=0.05)


@pytest.mark.slow
def test_intervals_of_the_half_life_cover_it_though_events_of_a_user_are_alike():
    """95% of 60 draws: the binomial's lower end is 52."""
    inside = 0
    for seed in range(60):
        user, age, window, noise = drawn(seed, users=200, personal=1.0)
        own = 1 + 0.8 * np.random.default_rng(seed).normal(size=200)[user]
        cells = cells_of(user, age, window, own * exponential(age) + 0.05 * noise)
        low, high = decay_of(cells).forms["exponential"].interval
        inside += low < 6 * HOUR < high
    assert inside >= 52


@pytest.mark.slow
def test_no_decay_is_reported_where_there_is_none():
    """False alarms at 5%, over 120 draws: the binomial's upper end is 12."""
    false = 0
    for seed in range(120):
        user, age, window, noise = drawn(seed, users=150)
        false += decay_of(cells_of(user, age, window, 1 + noise)).p_value < 0.05
    assert false <= 12


def test_influence_that_grows_with_age_does_not_fade():
    user, age, window, noise = drawn(0)
    found = decay_of(cells_of(user, age, window, np.log(1 + age) + 0.1 * noise))
    assert found.trend == "grows"
    assert found.p_value < 1e-6


def test_too_few_users_and_no_influence_are_no_decay():
    user, age, window, noise = drawn(0, users=9)
    assert decay_of(cells_of(user, age, window, noise)).trend == "unknown"
    user, age, window, noise = drawn(0)
    decays = [decay_of(cells_of(user, age, window, x * exponential(age))) for x in (0, 1)]
    assert decays[0].trend == "zero"
    corrected = holm([decay.p_value for decay in decays])
    assert np.isnan(corrected[0])
    assert corrected[1] == decays[1].p_value


def test_the_curve_holds_every_event_once_at_its_age():
    user, age, window, noise = drawn(0)
    found = curve(cells_of(user, age, window, noise))
    assert found.events.sum() == len(age)
    assert (found.edges <= found.ages).all()
    assert (found.ages[:-1] < found.edges[1:]).all()
    assert (found.means * found.events).sum() == pytest.approx(noise.sum())
    assert (np.abs(found.means) < 2 * found.halves).mean() > 0.8


def test_a_half_life_below_a_second_is_said_to_be_too_short():
    user, age, window, noise = drawn(0)
    age[::10] = 0
    found = decay_of(cells_of(user, age, window, (age == 0) * (1 + 0.1 * noise))).chosen
    assert found.too_short
    assert np.isnan(found.interval).all()
