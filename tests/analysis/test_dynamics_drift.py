"""Drift whose date is known, and none where there is none."""

from datetime import date

import numpy as np
import pytest

from llm_influence.analysis.drift import drift_of
from llm_influence.analysis.levels import windows_of
from llm_influence.errors import ConfigError, DataError
from tests.analysis.timed import cells_of, drawn

DAY, WINDOWS = 86_400, 12


def drifting(seed, shift, *, users=300):
    """One group whose mean at age a in window w is ``shift(a, w)``."""
    user, age, window, noise = drawn(seed, users=users, windows=WINDOWS)
    cells = cells_of(user, age, window, shift(age, window) + noise, windows=WINDOWS)
    return drift_of(cells, groups=1, alpha=0.05, seed=seed)


def test_no_change_is_found_where_there_is_none():
    """False alarms at 5%, over 120 draws: the binomial's upper end is 12."""
    false = sum(bool(drifting(seed, lambda age, _: age**-0.1).changes) for seed in range(120))
    assert false <= 12


def test_changes_are_found_at_their_dates_with_their_size():
    found = drifting(
        0, lambda _, window: 1.0 + 1.5 * (window >= 4) - 1.0 * (window >= 9), users=900
    )
    assert [change.window for change in found.changes] == [4, 9]
    for change, size in zip(found.changes, (1.5, -1.0), strict=True):
        assert change.p_value <= 2 / 20_000
        assert abs(change.after - change.before - size) < change.half
        assert change.half < 0.4
    assert found.values[:4].mean() == pytest.approx(1.0, abs=0.2)


def test_looking_at_more_groups_asks_for_more():
    user, age, window, noise = drawn(4, windows=WINDOWS)
    cells = cells_of(user, age, window, noise + 0.4 * (window >= 6), windows=WINDOWS)
    (one,) = drift_of(cells, groups=1, alpha=0.05, seed=0).changes
    few = int(0.05 / one.p_value)
    assert drift_of(cells, groups=few, alpha=0.05, seed=0).changes
    assert not drift_of(cells, groups=few + 1, alpha=0.05, seed=0).changes


def test_older_histories_in_later_windows_are_no_drift():
    user, age, window, noise = drawn(0, users=900, windows=WINDOWS)
    age = np.where(window >= 6, age * 20, age)
    scores = 3.0 * (age < 3_600) + 0.3 * noise
    assert not drift_of(
        cells_of(user, age, window, scores, windows=WINDOWS), groups=1, alpha=0.05, seed=0
    ).changes


@pytest.mark.parametrize("kind", ["day", "week", "month", "10", "10 days"])
def test_windows_cover_the_time_and_every_second_falls_into_the_one_that_began_last(kind):
    duckdb = pytest.importorskip("duckdb")
    first = 1_750_000_000
    windows = windows_of(first, first + 100 * DAY, kind)
    moments = [first, first + 20 * DAY, first + 100 * DAY]
    moments += [
        (start.toordinal() - 719_163) * DAY + s for start in windows.starts[1:] for s in (-1, 0)
    ]
    for moment in moments:
        ((place,),) = duckdb.sql(f"SELECT {windows.sql.format(moment)}").fetchall()
        day = date.fromordinal(719_163 + moment // DAY)
        assert place == windows.place_of(day)
    if kind == "week":
        assert {start.weekday() for start in windows.starts} == {0}


def test_windows_that_are_none_or_too_many_are_refused():
    with pytest.raises(ConfigError, match="window 'weak'"):
        windows_of(0, DAY, "weak")
    with pytest.raises(ConfigError, match="366 windows of a day"):
        windows_of(0, 365 * DAY, "day")
    with pytest.raises(DataError, match="one window"):
        windows_of(0, DAY, "month")
    kinds = [windows_of(0, days * DAY).kind for days in (0, 30, 31, 300)]
    assert kinds == ["day", "day", "week", "month"]
