"""Every error a user can meet, in one tree. Each is also the built-in error a caller would expect.

    InfluenceError
    ├── DataError (ValueError)             a log, item or user table
    │   ├── SchemaError                    a column is missing, misnamed or of the wrong type
    │   ├── TimestampError                 a time cannot be read, or zones are mixed
    │   ├── DuplicateError                 an event, user or item is repeated
    │   ├── EmptyLogError                  nothing is left to read
    │   ├── MissingFileError (FileNotFoundError)   there is no such file
    │   └── UnknownNameError (KeyError)    an item, behaviour or user not in the log or model
    ├── ConfigError (ValueError)           a configuration file, option or command-line override
    ├── TemplateError (ValueError)         a rendering template, or an event that does not fit
    ├── AssetError (OSError)               a model or data set that must be fetched and cannot be
    ├── ModelError (ValueError)            a backbone that does not fit its use
    │   └── ModelFolderError (OSError)     a saved model folder that is incomplete or damaged
    ├── ExplanationError (ValueError)      an unknown method, option, target or removal
    └── OutputError (OSError)              a place that cannot be written

Every message has four parts: what was found, where, what was expected, and how to fix it. Builders
make the errors of frequent kinds: `unknown`, `unreadable`, `missing`, `out_of_range`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar


class InfluenceError(Exception):
    """Base of all errors raised on purpose by llm_influence.

    Args:
        found: What was found, as a short clause ("column 'timestamp' is missing").
        where: The file, row, option or object with the error.
        expected: What would have been right.
        fix: What the user can do about it.
    """

    def __init__(self, found: str, *, where: str, expected: str, fix: str) -> None:
        self.found = found
        self.where = where
        self.expected = expected
        self.fix = fix
        parts = [_clip(part) for part in (where, found, expected, fix)]
        super().__init__("{}: {}. Expected {}. Fix: {}.".format(*parts))

    def __str__(self) -> str:
        """The message. `KeyError` would show its repr, `OSError` its error number."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error travel between processes with its keyword arguments."""
        return (_rebuild, (type(self), self.found, self.where, self.expected, self.fix))


def _clip(text: str, most: int = 900) -> str:
    """A text that fits on a screen: its beginning and its end."""
    return text if len(text) <= most else f"{text[: most - 200]} ... {text[-200:]}"


def _rebuild(
    kind: type[InfluenceError], found: str, where: str, expected: str, fix: str
) -> InfluenceError:
    return kind(found, where=where, expected=expected, fix=fix)


class DataError(InfluenceError, ValueError):
    """A behaviour log, item table or user table breaks the data contract."""


class SchemaError(DataError):
    """A column is missing, misnamed or of the wrong type."""


class TimestampError(DataError):
    """A time cannot be read, or rows with and without a zone are mixed."""


class DuplicateError(DataError):
    """An event (user, item, behaviour, time), or the id of a table, is repeated."""


class EmptyLogError(DataError):
    """No event, or no user with enough events, is left."""


class MissingFileError(DataError, FileNotFoundError):
    """There is no file or folder of that name."""


class UnknownNameError(DataError, KeyError):
    """An item, behaviour or user is not in the log or model it is used with."""


class ConfigError(InfluenceError, ValueError):
    """A configuration file, option or command-line override is wrong."""


class TemplateError(InfluenceError, ValueError):
    """A template is malformed, or an event does not fit the context it is rendered into."""


class AssetError(InfluenceError, OSError):
    """A model or data set that must be fetched cannot be, or is not the pinned one."""


class ModelError(InfluenceError, ValueError):
    """A backbone or head does not fit its use."""


class ModelFolderError(ModelError, OSError):
    """A saved model folder lacks a file, a head or an adapter key."""


class ExplanationError(InfluenceError, ValueError):
    """An unknown method, method option, target or removal, or one the model does not support."""


class OutputError(InfluenceError, OSError):
    """An output cannot be written: no permission, no space, or another run's files in the way."""


Kind = TypeVar("Kind", bound=InfluenceError)


def unknown(
    kind: type[Kind],
    what: str,
    name: object,
    known: Iterable[str],
    *,
    where: str,
    fix: str = "use one of these",
) -> Kind:
    """The error for a name that is not among the ``known`` ones; the nearest is suggested.

    Args:
        kind: Class of the error.
        what: What the name is of: "method", "behaviour".
        name: The name that was given.
        known: Valid names.
        where: The option, file or object with the name.
        fix: What the user can do about it.
    """
    return kind(
        f"unknown {what} {name!r}", where=where, expected=choices(known, str(name)), fix=fix
    )


def unreadable(
    kind: type[Kind], path: object, error: BaseException | str, *, expected: str, fix: str
) -> Kind:
    """The error for a file that cannot be read; ``error`` says why."""
    reason = getattr(error, "strerror", None) or error
    return kind(f"cannot be read ({reason})", where=str(path), expected=expected, fix=fix)


def missing(
    kind: type[Kind], names: Iterable[str], *, where: str, expected: str, fix: str, most: int = 5
) -> Kind:
    """The error for parts that are not there; at most ``most`` of them are named."""
    lacking = list(names)
    rest = f" and {len(lacking) - most} more" if len(lacking) > most else ""
    return kind(f"lacks {', '.join(lacking[:most])}{rest}", where=where, expected=expected, fix=fix)


def out_of_range(
    kind: type[Kind], option: str, value: object, *, expected: str, fix: str | None = None
) -> Kind:
    """The error for an option whose value is not allowed."""
    return kind(
        f"{option} is {value!r}",
        where=option,
        expected=expected,
        fix=fix or f"set {option} to {expected}",
    )


def check_type(
    kind: type[InfluenceError],
    option: str,
    value: object,
    types: type | tuple[type, ...],
    *,
    expected: str,
) -> None:
    """Raise an error of ``kind`` if an argument is of another type; True is no number."""
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        found, fix = f"{option} is {type(value).__name__} {value!r}", f"pass {expected}"
        raise kind(found, where=option, expected=expected, fix=fix)


def choices(names: Iterable[str], wrong: str | None = None, most: int = 50) -> str:
    """List valid names for a message, at most ``most``, and the nearest to ``wrong`` if any."""
    known = sorted(names)
    rest = f" and {len(known) - most:,} more" if len(known) > most else ""
    text = "one of " + ", ".join(map(repr, known[:most])) + rest if known else "nothing"
    alike = {name.casefold(): name for name in _alike(known, wrong)} if wrong else {}
    near = difflib.get_close_matches(wrong.casefold(), alike, n=1) if wrong else []
    return f"{text} (did you mean {alike[near[0]]!r}?)" if near else text


def _alike(known: list[str], wrong: str, most: int = 2000) -> list[str]:
    """Names worth a comparison with a wrong one: it takes milliseconds among many or long names."""
    if len(known) > most:
        known = [name for name in known if name[:2].casefold() == wrong[:2].casefold()]
    near = [name for name in known if abs(len(name) - len(wrong)) <= 8 and len(name) < 200]
    return near[:most]
