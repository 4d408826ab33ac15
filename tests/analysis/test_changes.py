"""Change points with known dates, and two sets of tables with known differences."""

from dataclasses import replace

import numpy as np
import pytest

from llm_influence.analysis.changes import compare, drift_of
from llm_influence.analysis.levels import factor_of
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from tests.analysis.synthetic import cells_of, drawn, timed, write

WINDOWS = 12


def drifting(seed, shift, *, users=300):
    """One group whose mean at age a in window w is ``shift(a, w)``."""
    user, age, window, noise = drawn(seed, users=users, windows=WINDOWS)
    cells = cells_of(user, age, window, shift(age, window) + noise, windows=WINDOWS)
    return drift_of(cells, tests=1, alpha=0.05, seed=seed)


@pytest.mark.slow
def test_no_change_is_found_where_there_is_none():
    """False alarms at 5%, over 120 draws: the binomial's upper end is 12."""
    false = sum(bool(drifting(seed, lambda age, _: age**-0.1).changes) for seed in range(120))
    assert false <= 12


def test_changes_are_found_at_their_dates_with_their_size():
    found = drifting(
        0, lambda _, window: 1.0 + 1.5 * (window >= 4) - 1.0 * (window >= 9), users=900
    )
    assert [change["window"] for change in found.changes] == [4, 9]
    for change, size in zip(found.changes, (1.5, -1.0), strict=True):
        assert change["p_corrected"] <= 2 / 20_000
        assert change["low"] < size < change["high"]
        assert change["high"] - change["low"] < 0.8
    assert found.values[:4].mean() == pytest.approx(1.0, abs=0.2)


def test_looking_at_more_groups_asks_for_more():
    user, age, window, noise = drawn(4, windows=WINDOWS)
    cells = cells_of(user, age, window, noise + 0.4 * (window >= 6), windows=WINDOWS)
    (one,) = drift_of(cells, tests=1, alpha=0.05, seed=0).changes
    few = int(0.05 / one["p_corrected"])
    assert drift_of(cells, tests=few, alpha=0.05, seed=0).changes
    assert not drift_of(cells, tests=few + 1, alpha=0.05, seed=0).changes


def test_older_histories_in_later_windows_are_no_drift():
    user, age, window, noise = drawn(0, users=900, windows=WINDOWS)
    age = np.where(window >= 6, age * 20, age)
    scores = 3.0 * (age < 3_600) + 0.3 * noise
    assert not drift_of(
        cells_of(user, age, window, scores, windows=WINDOWS), tests=1, alpha=0.05, seed=0
    ).changes


@pytest.fixture(scope="module")
def records():
    return timed(lambda _behavior, _age, _moment, random: random.normal(), users=105)


def test_other_periods_are_compared_without_pairs(tmp_path):
    def scores_with(weight):
        return lambda behavior, _age, _moment, random: (
            weight * (behavior == "click") + 0.1 * random.normal()
        )

    early = write(tmp_path / "a", timed(scores_with(0.5), users=150, seed=1))
    late = write(tmp_path / "b", timed(scores_with(0.8), users=150, seed=2))
    with InfluenceView(late) as after, InfluenceView(early) as before:
        _, rows = compare(after, before, [factor_of(after, "behavior")])
        assert not after.table("SHOW TABLES")["name"].to_pylist().count("both_events")
    found = {row["level"]: row for row in rows if row["factor"] == "behavior"}
    assert found["click"]["how"] == "unpaired"
    assert found["click"]["low"] < 0.3 < found["click"]["high"]
    assert [level for level, row in found.items() if row["moved"]] == ["click"]


def test_events_alike_in_all_but_place_are_paired_once(tmp_path, records):
    def twice(record):
        events = tuple(
            replace(event, timestamp=record.events[0].timestamp, item="i1", behavior="click")
            for event in record.events
        )
        return replace(record, events=events)

    double = [twice(record) for record in records[:40]]
    one = write(tmp_path / "a", double)
    two = write(tmp_path / "b", [replace(r, values=r.values + 1) for r in double])
    with InfluenceView(two) as after, InfluenceView(one) as before:
        facts, rows = compare(after, before, [])
    assert facts["paired_events"] == 40 * 12
    assert rows[0]["change"] == pytest.approx(1)
    assert rows[0]["low"] == pytest.approx(1)


def test_tables_that_cannot_be_compared_are_refused(tmp_path, records):
    other = write(
        tmp_path / "o",
        [replace(r, quality=replace(r.quality, method="shapley")) for r in records[:20]],
    )
    few = write(tmp_path / "f", records[:20])
    half = write(tmp_path / "h", records[100:105])
    double = [*records[:20], *records[:20]]
    with InfluenceView(few) as view:
        with (
            InfluenceView(other) as earlier,
            pytest.raises(DataError, match="method leave_one_out here, shapley"),
        ):
            compare(view, earlier, [])
        with (
            InfluenceView(half) as earlier,
            pytest.raises(DataError, match="no events, levels or items"),
        ):
            compare(view, earlier, [])
        with (
            InfluenceView(write(tmp_path / "d", double)) as earlier,
            pytest.raises(DataError, match="--against: user 'u0' has two explanations"),
        ):
            compare(view, earlier, [])
        with InfluenceView(
            write(tmp_path / "all", records)
        ) as earlier:  # and a refusal leaves the view as it was
            assert compare(view, earlier, [])[0]["paired_explanations"] == 20
