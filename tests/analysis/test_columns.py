"""Exact sums in SQL, and calendar windows."""

import math
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from llm_influence.analysis.columns import DAY, exact_mean, exact_sum, windows_of
from llm_influence.errors import ConfigError, DataError


def asked(numbers, expression):
    connection = duckdb.connect()
    connection.register("numbers", pa.table({"x": pa.array(numbers, pa.float64())}))
    return connection.execute(f"SELECT {expression} FROM numbers").fetchone()[0]


def test_any_order_gives_the_same_digits_and_those_of_the_exact_sum():
    random = np.random.default_rng(0)
    numbers = (random.normal(size=300) * 10 ** random.uniform(-6, 6, size=300)).tolist()
    found = asked(numbers, exact_sum("x"))
    assert abs(found - math.fsum(numbers)) < 300 * 2**-40
    plain = set()
    for _ in range(20):
        random.shuffle(numbers)
        plain.add(sum(numbers))
        assert asked(numbers, exact_sum("x")) == found
        assert asked(numbers, exact_mean("x")) == found / 300
    assert len(plain) > 1  # which added up in turn they are not


def test_nulls_are_left_out_and_conditions_hold():
    numbers = [0.5, None, -3.25, 8.0]
    assert asked(numbers, exact_sum("x")) == 5.25
    assert asked(numbers, exact_mean("x")) == 1.75
    assert asked(numbers, exact_sum("x", "x > 0")) == 8.5
    assert asked(numbers, exact_sum("2 * x", "x > 100")) is None


@pytest.mark.parametrize("kind", ["day", "week", "month", "10", "10 days"])
def test_windows_cover_the_time_and_every_second_falls_into_the_one_that_began_last(kind):
    first = 1_750_000_000
    windows = windows_of(first, first + 100 * DAY, kind)
    moments = [first, first + 20 * DAY, first + 100 * DAY]
    moments += [
        (start.toordinal() - 719_163) * DAY + s for start in windows.starts[1:] for s in (-1, 0)
    ]
    for moment in moments:
        ((place,),) = duckdb.sql(f"SELECT {windows.sql.format(moment)}").fetchall()
        day = date.fromordinal(719_163 + moment // DAY)
        assert place == sum(start <= day for start in windows.starts) - 1
    if kind == "week":
        assert {start.weekday() for start in windows.starts} == {0}


def test_windows_that_are_none_or_too_many_are_refused():
    with pytest.raises(ConfigError, match="--window is 'weak'"):
        windows_of(0, DAY, "weak")
    with pytest.raises(ConfigError, match="366 windows of a day"):
        windows_of(0, 365 * DAY, "day")
    with pytest.raises(DataError, match="one window"):
        windows_of(0, DAY, "month")
    kinds = [windows_of(0, days * DAY).kind for days in (0, 30, 31, 300)]
    assert kinds == ["day", "day", "week", "month"]
