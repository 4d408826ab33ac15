"""Sums in SQL that do not depend on the order of rows."""

import math

import duckdb
import numpy as np

from llm_influence.analysis.columns import mean, total


def rows(numbers):
    connection = duckdb.connect()
    connection.execute("CREATE TABLE t (x DOUBLE)")
    connection.executemany("INSERT INTO t VALUES (?)", [[number] for number in numbers])
    return connection


def asked(numbers, expression):
    return rows(numbers).execute(f"SELECT {expression} FROM t").fetchone()[0]


def test_any_order_gives_the_same_digits_and_those_of_the_exact_sum():
    random = np.random.default_rng(0)
    numbers = (random.normal(size=300) * 10 ** random.uniform(-6, 6, size=300)).tolist()
    found = asked(numbers, total("x"))
    assert abs(found - math.fsum(numbers)) < 300 * 2**-40
    plain = set()
    for _ in range(20):
        random.shuffle(numbers)
        plain.add(sum(numbers))
        assert asked(numbers, total("x")) == found
        assert asked(numbers, mean("x")) == found / 300
    assert len(plain) > 1  # which added up in turn they are not


def test_nulls_are_left_out_and_conditions_hold():
    numbers = [0.5, None, -3.25, 8.0]
    assert asked(numbers, total("x")) == 5.25
    assert asked(numbers, mean("x")) == 1.75
    assert asked(numbers, total("x", "x > 0")) == 8.5
    assert asked(numbers, total("2 * x", "x > 100")) is None
