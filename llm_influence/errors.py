"""Every error a user can meet, in one tree.

    InfluenceError
    ├── DataError            a log, item or user table
    │   ├── SchemaError      a column is missing, misnamed or of the wrong type
    │   ├── TimestampError   a time cannot be read, or zones are mixed
    │   ├── DuplicateError   the same event stands twice
    │   ├── EmptyLogError    nothing is left to read
    │   └── UnknownNameError an item, behaviour or user that is not known here
    ├── ConfigError          a configuration file, option or command-line override
    ├── TemplateError        a rendering template, or an event it cannot place in the context
    ├── AssetError           a model or data set that must be fetched and cannot be
    ├── ModelError           a backbone that does not fit its use
    │   └── ModelFolderError a saved model folder that is incomplete or damaged
    ├── ExplanationError     an unknown method, option, target or removal
    └── OutputError          a place that cannot be written

Every message names what was found, where it stands, what was expected, and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InfluenceError(Exception):
    """Base of all errors raised on purpose by llm_influence.

    Args:
        found: What was found, as a short clause ("column 'timestamp' is missing").
        where: The file, row, option or object where it stands.
        expected: What would have been right.
        fix: What the user can do about it.
    """

    def __init__(self, found: str, *, where: str, expected: str, fix: str) -> None:
        self.found = found
        self.where = where
        self.expected = expected
        self.fix = fix
        super().__init__(f"{where}: {found}. Expected {expected}. Fix: {fix}.")

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error travel between processes with its keyword arguments."""
        return (_rebuild, (type(self), self.found, self.where, self.expected, self.fix))


def _rebuild(
    kind: type[InfluenceError], found: str, where: str, expected: str, fix: str
) -> InfluenceError:
    return kind(found, where=where, expected=expected, fix=fix)


class DataError(InfluenceError):
    """A behaviour log, item table or user table is not what the data contract asks for."""


class SchemaError(DataError):
    """A column is missing, misnamed or of the wrong type."""


class TimestampError(DataError):
    """A time cannot be read, or rows with and without a zone are mixed."""


class DuplicateError(DataError):
    """The same event (user, item, behaviour, time) stands more than once."""


class EmptyLogError(DataError):
    """No event, or no user with enough events, is left."""


class UnknownNameError(DataError):
    """An item, behaviour or user is not known to the log or model it is used with."""


class ConfigError(InfluenceError):
    """A configuration file, option or command-line override is wrong."""


class TemplateError(InfluenceError):
    """A template is malformed, or an event does not fit the context it is rendered into."""


class AssetError(InfluenceError):
    """A model or data set that must be fetched cannot be, or is not the pinned one."""


class ModelError(InfluenceError):
    """A backbone or head does not fit the use that is made of it."""


class ModelFolderError(ModelError):
    """A saved model folder lacks a file, a head or an adapter key."""


class ExplanationError(InfluenceError):
    """An unknown method, method option, target or removal, or one the model cannot serve."""


class OutputError(InfluenceError):
    """An output cannot be written: no permission, no space, or another run's files in the way."""


def choices(names: Iterable[str], wrong: str | None = None) -> str:
    """List valid names for a message, the nearest to ``wrong`` first if one is near."""
    known = sorted(names)
    text = "one of " + ", ".join(repr(name) for name in known) if known else "nothing"
    near = difflib.get_close_matches(wrong, known, n=1) if wrong else []
    return f"{text} (did you mean {near[0]!r}?)" if near else text
