import numpy as np
import pyarrow as pa
import pytest

from llm_influence.data.schema import encode, first_failure, locate, read_values
from llm_influence.errors import SchemaError


def test_columns_are_found_under_their_own_or_the_mapped_name():
    found = locate(["who", "item_id", "timestamp"], {"user_id": "who"}, where="f")
    assert found == {"user_id": "who", "item_id": "item_id", "timestamp": "timestamp"}


@pytest.mark.parametrize("near", ["user", "userId", "USER_ID"])
def test_missing_column_names_the_near_one_and_the_fix(near):
    with pytest.raises(SchemaError) as caught:
        locate([near, "item_id", "timestamp"], None, where="log.csv")
    assert str(caught.value).startswith("log.csv: column 'user_id' is missing; found " + repr(near))
    assert caught.value.fix == f"map it with columns={{'user_id': {near!r}}}"


def test_optional_column_under_a_near_name_is_not_left_out_silently():
    with pytest.raises(SchemaError, match="'behaviour' looks like 'behavior'"):
        locate(["user_id", "item_id", "timestamp", "behaviour"], None, where="f")


def test_mapping_must_use_the_contract_and_existing_columns():
    with pytest.raises(SchemaError, match=r"'item' is not a column.*did you mean 'item_id'"):
        locate(["user_id"], {"item": "x"}, where="f")
    with pytest.raises(SchemaError, match="column 'raing' is missing; found 'rating'"):
        locate(["user_id", "item_id", "timestamp", "rating"], {"value": "raing"}, where="f")


@pytest.mark.parametrize(
    "column",
    [
        pa.chunked_array([["b", "a"], ["b", "é"]]),
        pa.chunked_array([pa.array(["b", "a", "b", "é"]).dictionary_encode()]),
        pa.chunked_array([pa.array(["b", "a", "b", "é"], pa.string_view())]),
        # a dictionary with a name that never occurs and one that stands twice
        pa.chunked_array([pa.DictionaryArray.from_arrays([0, 2, 3, 4], ["b", "c", "a", "b", "é"])]),
    ],
)
def test_encode_sorts_the_names_that_occur(column):
    codes, names = encode(column, name="user_id", where="f")
    assert names.to_pylist() == ["a", "b", "é"]
    assert codes.tolist() == [1, 0, 1, 2]
    assert codes.dtype == np.int32


def test_encode_joins_the_dictionaries_of_chunks():
    chunks = [pa.array(part).dictionary_encode() for part in (["b"], ["a", "b"])]
    codes, names = encode(pa.chunked_array(chunks), name="user_id", where="f")
    assert names.take(pa.array(codes)).to_pylist() == ["b", "a", "b"]


def test_whole_numbers_become_text():
    _, names = encode(pa.chunked_array([[10, 9]]), name="user_id", where="f")
    assert names.to_pylist() == ["10", "9"]


@pytest.mark.parametrize("empty", [None, ""])
def test_empty_key_names_its_row(empty):
    with pytest.raises(SchemaError, match=r"f, row 3, column 'user_id': the cell is empty"):
        encode(pa.chunked_array([["a", "b", empty]]), name="user_id", where="f")


def test_ids_must_not_be_floats():
    with pytest.raises(SchemaError, match="has type double"):
        encode(pa.chunked_array([[1.0]]), name="user_id", where="f")


def test_values_read_from_numbers_and_text_and_null():
    values = read_values(pa.chunked_array([["1.5", None]]), name="value", where="f")
    np.testing.assert_array_equal(values, np.array([1.5, np.nan], np.float32))
    whole = read_values(pa.chunked_array([[True, False]]), name="value", where="f")
    assert whole.tolist() == [1, 0]


def test_value_that_is_no_number_names_its_row():
    with pytest.raises(SchemaError, match=r"row 2, column 'value': 'five' is not a number"):
        read_values(pa.chunked_array([["4", "five"]]), name="value", where="f")


@pytest.mark.parametrize("bad", [0, 1, 37, 99])
def test_first_failure_finds_the_row(bad):
    cells = ["1"] * 100
    cells[bad] = "x"
    cells[99] = "y"
    assert first_failure(pa.chunked_array([cells]), pa.int64()) == bad
    assert first_failure(pa.chunked_array([["1"] * 100]), pa.int64()) is None
