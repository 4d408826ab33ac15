import datetime as dt

import pyarrow as pa
import pytest

from llm_influence.data.times import read_times
from llm_influence.errors import SchemaError, TimestampError

MOMENT = 1_577_872_800  # 2020-01-01T10:00:00Z


def seconds(cells, kind=None, **options):
    column = pa.chunked_array([pa.array(cells, kind)])
    return read_times(column, name="timestamp", where="log.csv", **options).seconds.tolist()


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (MOMENT, pa.int32()),
        (MOMENT, pa.uint64()),
        (MOMENT + 0.75, pa.float64()),
        (str(MOMENT), pa.string()),
        (f"{MOMENT}.75", pa.string()),
        (MOMENT * 10**9 + 5, pa.timestamp("ns", "UTC")),
        (MOMENT * 10**3, pa.timestamp("ms", "America/New_York")),
        ("2020-01-01T10:00:00Z", pa.string()),
        (" 2020-01-01 10:00:00.75+00:00", pa.string()),
        ("2020-01-01T12:00:00+0200", pa.large_string()),
        ("2020-01-01T05:00:00-05", pa.string_view()),
    ],
)
def test_one_moment_in_every_form(cell, kind):
    assert seconds([cell], kind) == [MOMENT]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("2020-01-01 11:00:00", pa.string()),
        (dt.datetime(2020, 1, 1, 11), pa.timestamp("us")),
    ],
)
def test_times_without_a_zone_need_one(cell, kind):
    assert seconds([cell], kind, timezone="Europe/Berlin") == [MOMENT]
    with pytest.raises(TimestampError, match="no zone") as caught:
        seconds([cell], kind)
    assert "timezone='UTC'" in caught.value.fix
    with pytest.raises(TimestampError, match="timezone='Mars/Base' is not known"):
        seconds([cell], kind, timezone="Mars/Base")


def test_dates_are_midnights():
    assert seconds([dt.date(2020, 1, 1)], timezone="UTC") == [MOMENT - 10 * 3600]


def test_fractions_survive_until_the_sort():
    column = pa.chunked_array([["2020-01-01T10:00:00.9Z", "2020-01-01T10:00:00.1Z"]])
    times = read_times(column, name="t", where="f")
    assert times.ticks[0] > times.ticks[1]


@pytest.mark.parametrize(("factor", "unit"), [(10**3, "milli"), (10**6, "micro"), (10**9, "nano")])
def test_too_large_for_seconds(factor, unit):
    with pytest.raises(TimestampError, match=rf"row 2, column 'timestamp'.*looks like {unit}"):
        seconds([MOMENT, MOMENT * factor])


def test_unreadable_text_names_its_row():
    with pytest.raises(TimestampError, match=r"log.csv, row 3, column 'timestamp': 'soon' cannot"):
        seconds(["2020-01-01T10:00:00Z", "2020-01-02T10:00:00Z", "soon", "later"])
    with pytest.raises(TimestampError, match=r"row 2.*'2020-13-01T10:00:00Z' cannot"):
        seconds(["2020-01-01T10:00:00Z", "2020-13-01T10:00:00Z"])
    with pytest.raises(TimestampError, match=r"row 2.*'2020-01-01' cannot"):
        seconds(["12", "2020-01-01"])


def test_mixed_zones_name_the_first_row_of_each_kind():
    cells = ["2020-01-01T10:00:00", "2020-01-01T10:00:00", "2020-01-01T10:00:00Z"]
    with pytest.raises(TimestampError, match=r"row 3 has a zone.*row 1 has none"):
        seconds(cells, timezone="UTC")


def test_a_type_that_is_no_time():
    with pytest.raises(TimestampError, match="type bool is not a time"):
        seconds([True])


def test_empty_time():
    with pytest.raises(SchemaError, match="row 2, column 'timestamp': the cell is empty"):
        seconds([1, None])
    with pytest.raises(TimestampError, match="row 1"):
        seconds([float("nan")])
