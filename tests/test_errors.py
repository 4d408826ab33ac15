"""Every error is also a built-in one, and its message has four parts."""

import copy

import pytest

from llm_influence import errors
from llm_influence.errors import (
    AssetError,
    ConfigError,
    DataError,
    ExplanationError,
    InfluenceError,
    MissingFileError,
    ModelError,
    ModelFolderError,
    OutputError,
    TemplateError,
    UnknownNameError,
)

BUILT_IN = {
    DataError: ValueError,
    MissingFileError: FileNotFoundError,
    UnknownNameError: KeyError,
    ConfigError: ValueError,
    TemplateError: ValueError,
    AssetError: OSError,
    ModelError: ValueError,
    ModelFolderError: OSError,
    ExplanationError: ValueError,
    OutputError: OSError,
}
ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, InfluenceError)
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_four_parts_and_travels_between_processes(kind):
    error = kind("column 'x' is missing", where="log.csv", expected="a column 'x'", fix="add it")
    message = "log.csv: column 'x' is missing. Expected a column 'x'. Fix: add it."
    assert str(error) == message
    copied = copy.copy(error)  # as pickle does
    assert type(copied) is kind
    assert str(copied) == message
    parts = (copied.found, copied.where, copied.expected, copied.fix)
    assert parts == ("column 'x' is missing", "log.csv", "a column 'x'", "add it")


def test_every_error_is_also_the_built_in_one():
    for kind, built_in in BUILT_IN.items():
        with pytest.raises(built_in):
            raise kind("found", where="where", expected="expected", fix="fix")
    assert all(any(issubclass(kind, base) for base in BUILT_IN) for kind in ALL[1:])


def test_builders_name_the_value_and_the_choices():
    error = errors.unknown(UnknownNameError, "method", "shaply", ["shapley", "lime"], where="--by")
    assert "--by: unknown method 'shaply'" in str(error)
    assert "one of 'lime', 'shapley' (did you mean 'shapley'?)" in str(error)
    assert errors.choices(map(str, range(10, 99)), most=2) == "one of '10', '11' and 87 more"
    assert errors.choices([]) == "nothing"
    denied = errors.unreadable(
        DataError, "a.csv", PermissionError(13, "Permission denied"), expected="a file", fix="copy"
    )
    assert str(denied).startswith("a.csv: cannot be read (Permission denied)")
    lacking = errors.missing(DataError, "abcdefg", where="model", expected="all", fix="train")
    assert lacking.found == "lacks a, b, c, d, e and 2 more"
    wrong = errors.out_of_range(ConfigError, "epochs", -1, expected="1 or more")
    assert str(wrong) == "epochs: epochs is -1. Expected 1 or more. Fix: set epochs to 1 or more."
