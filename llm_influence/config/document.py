"""What every configuration is: sections that refuse unknown keys, and YAML files of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llm_influence.errors import ConfigError, choices
from llm_influence.utils import write_text


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Document(Section):
    """A section that is a YAML file of its own."""

    @classmethod
    def load(cls, path: str | Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file (or start from the defaults) and put dotted overrides on top.

        Args:
            path: The YAML file, or None for the defaults.
            overrides: ``["--train.epochs", "4"]`` or ``["--train.epochs=4"]``.

        Raises:
            ConfigError: The file cannot be read, or a key or value is wrong.
        """
        tree = _read_yaml(Path(path)) if path is not None else {}
        place = str(path) if path is not None else "command line"
        for key, text in _pairs(overrides):
            set_option(tree, key, _value(key, text))
        return cls.of(tree, place)

    @classmethod
    def of(cls, tree: dict[str, Any], place: str) -> Self:
        """Check options that are already read; ``place`` is what messages call their source.

        Raises:
            ConfigError: A key or value is wrong.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _as_config_error(error, place, cls) from error

    def save(self, path: Path) -> None:
        """Write the whole configuration, defaults included, as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def set_option(tree: dict[str, Any], key: str, value: object) -> None:
    """Put a value at a dotted key of a tree of sections; missing sections are made.

    Raises:
        ConfigError: A part of the key before the last is a value, not a section.
    """
    *sections, option = key.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise ConfigError(
                f"{section!r} is a value, not a section",
                where=f"--{key}",
                expected="section.option",
                fix="write the option's full dotted name",
            )
        tree = branch
    tree[option] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            error.strerror or "cannot be read",
            where=str(path),
            expected="a readable YAML file",
            fix="check the path",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"not YAML ({error})", where=str(path), expected="YAML", fix="correct the syntax"
        ) from error
    if not isinstance(tree or {}, dict):
        raise ConfigError(
            f"the top level is a {type(tree).__name__}",
            where=str(path),
            expected="a mapping of sections",
            fix="start from a file in configs/",
        )
    return tree or {}


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``--a.b 1`` and ``--a.b=1`` into (dotted key, text) pairs."""
    pairs, waiting = [], list(overrides)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (equals or waiting):
            raise ConfigError(
                f"cannot read {word!r}",
                where="command line",
                expected="--section.option value",
                fix="give every option a value, as in --train.epochs 4",
            )
        pairs.append((key, text if equals else waiting.pop(0)))
    return pairs


def _value(key: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"cannot read {text!r}",
            where=f"--{key}",
            expected="a value as YAML writes it: 4, 1e-3, true, [wandb, tensorboard]",
            fix="close every bracket and quote, and quote the whole value in the shell",
        ) from error


def _as_config_error(error: ValidationError, place: str, root: type[BaseModel]) -> ConfigError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _fields(root, path[:-1])
        return ConfigError(
            f"unknown option {dotted!r}",
            where=place,
            expected=choices(known, path[-1]),
            fix="correct or remove the option",
        )
    return ConfigError(
        f"{dotted} is {first.get('input')!r}",
        where=place,
        expected=_lower_first(first["msg"].removeprefix("Value error, ")),
        fix=f"correct {dotted}",
    )


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _fields(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    section: Any = root
    for part in path:
        if get_origin(section) is dict:  # its keys are free
            section = get_args(section)[1]
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
