"""Options that several commands have.

Options of attribution methods as words: ``steps=64``, ``integrated_gradients.steps=64``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from llm_influence.errors import ConfigError

ConfigFile = Annotated[Path | None, typer.Option(help="YAML file of the run; default: the demo's")]
ModelFolder = Annotated[Path, typer.Option("--model", help="folder that `finetune` wrote")]
LogSource = Annotated[
    str | None,
    typer.Option("--log", help="behaviour log, a file or public name; default: the run's own"),
]
ItemsFile = Annotated[str | None, typer.Option(help="item table that goes with --log")]
UsersFile = Annotated[str | None, typer.Option(help="user table that goes with --log")]
RulesFile = Annotated[Path | None, typer.Option(help="YAML file of rules; default: the run's own")]


def method_options(words: list[str]) -> dict[str, object]:
    """Options written as ``name=value``; the value is YAML.

    Raises:
        ConfigError: A word has no ``=``.
    """
    options: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read {word!r}",
                where="--option",
                expected="name=value",
                fix="write it as --option steps=64",
            )
        options[name] = yaml.safe_load(text)
    return options


def options_by_method(words: list[str], methods: list[str]) -> dict[str, dict[str, object]]:
    """Options written as ``method.name=value``, by method."""
    found: dict[str, dict[str, object]] = {method: {} for method in methods}
    for key, value in method_options(words).items():
        method, dot, name = key.partition(".")
        if not dot or method not in found:
            raise ConfigError(
                f"cannot read {key!r}",
                where="--option",
                expected="method.name=value with a method of --methods",
                fix=f"write it as --option {methods[0] if methods else 'method'}.steps=64",
            )
        found[method][name] = value
    return found
