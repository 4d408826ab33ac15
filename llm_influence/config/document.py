"""Base classes of all configurations, and the reading of YAML files and command-line overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llm_influence.errors import ConfigError, InfluenceError, choices, unreadable
from llm_influence.utils import write_text

Error = TypeVar("Error", bound=InfluenceError)


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, tree: object, where: str, *, what: str = "option") -> Self:
        """Make a section from plain data.

        Args:
            tree: A mapping of option names to values, nested as the sections are.
            where: The file or object the data comes from, for messages.
            what: What messages call a key.

        Raises:
            ConfigError: A key or value is wrong.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _as_config_error(error, where, cls, what) from error


class Document(Section):
    """Base of the configurations that are a YAML file of their own."""

    @classmethod
    def load(cls, path: str | Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply overrides.

        Args:
            path: The YAML file; None starts from the defaults.
            overrides: Dotted options, ``["--train.epochs", "4"]`` or ``["--train.epochs=4"]``.

        Raises:
            ConfigError: The file cannot be read, or a key or value is wrong.
        """
        tree = (read_yaml(Path(path)) or {}) if path is not None else {}
        where = str(path) if path is not None else "command line"
        if not isinstance(tree, dict):
            found = f"the top level is a {type(tree).__name__}"
            fix = "start from a file in configs/"
            raise ConfigError(found, where=where, expected="a mapping of sections", fix=fix)
        for key, text in _pairs(overrides):
            set_option(tree, key, parse_yaml(text, f"--{key}"))
        return cls.of(tree, where)

    def save(self, path: Path) -> None:
        """Write the whole configuration as YAML, defaults included."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def set_option(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted option in nested mappings; missing sections are created."""
    *sections, option = key.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            found = f"{section!r} is a value, not a section"
            fix = "write the full dotted name of the option"
            raise ConfigError(found, where=f"--{key}", expected="section.option", fix=fix)
        tree = branch
    tree[option] = value


class _Loader(yaml.SafeLoader):
    """Plain YAML data; a key that stands twice in a mapping is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def read_yaml(path: Path, kind: type[InfluenceError] = ConfigError) -> Any:  # noqa: ANN401
    """Read the data of a YAML file.

    Args:
        path: The file, UTF-8.
        kind: Class of the errors.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or a key stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        expected, fix = "a YAML file in UTF-8", "check the path and the file"
        raise unreadable(kind, path, error, expected=expected, fix=fix) from error
    return parse_yaml(text, str(path), kind)


def parse_yaml(text: str, where: str, kind: type[InfluenceError] = ConfigError) -> Any:  # noqa: ANN401
    """Read the data of a YAML text; ``where`` and ``kind`` are those of its errors."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"{error.problem}, line {mark.line + 1}" if mark else str(error)  # type: ignore[attr-defined]
        found = f"{text!r} is not YAML ({reason})" if "\n" not in text else f"not YAML ({reason})"
        expected = "YAML with every key once, such as 4, 1e-3, true, [a, b] or {key: value}"
        fix = "close every bracket and quote, and write every key once"
        raise kind(found, where=where, expected=expected, fix=fix) from error


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``--a.b 1`` and ``--a.b=1`` into pairs of dotted key and text."""
    pairs, waiting = [], list(overrides)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (equals or waiting):
            found, expected = f"cannot read {word!r}", "--section.option value"
            fix = "give every option a value, as in --train.epochs 4"
            raise ConfigError(found, where="command line", expected=expected, fix=fix)
        pairs.append((key, text if equals else waiting.pop(0)))
    return pairs


def _as_config_error(
    error: ValidationError, where: str, root: type[BaseModel], what: str
) -> ConfigError:
    """The first problem that pydantic found, an unknown key before all others."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        place = f"{where}, {cause.where}"
        return ConfigError(cause.found, where=place, expected=cause.expected, fix=cause.fix)
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        expected, fix = choices(_names(root, path[:-1]), path[-1]), f"correct or remove the {what}"
        return ConfigError(f"unknown {what} {dotted!r}", where=where, expected=expected, fix=fix)
    if first["type"] == "missing":
        fix = f"add the {what}"
        return ConfigError(f"{dotted} is missing", where=where, expected="a value", fix=fix)
    message = first["msg"].removeprefix("Value error, ")
    found, fix = f"{dotted or 'it'} is {first.get('input')!r}", f"correct {dotted or f'the {what}'}"
    return ConfigError(found, where=where, expected=message[0].lower() + message[1:], fix=fix)


def _names(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the options of the section at ``path``."""
    section: Any = root
    for part in path:
        if get_origin(section) is dict:  # its keys are free
            section = get_args(section)[1]
        else:
            section = section.model_fields[part].annotation
        for option in get_args(section):  # a section or None
            if get_origin(section) is not dict and hasattr(option, "model_fields"):
                section = option
    return [field.alias or name for name, field in section.model_fields.items()]
