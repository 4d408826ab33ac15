"""The options a search changes: their draws, and the runs made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llm_influence.config import RunConfig, SearchedOption, set_option
from llm_influence.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Trial

Settings = dict[str, object]
"""Values by dotted option."""

FIXED = {
    "output": "every trial has a folder of its own",
    "data": "trials on other data have other validation questions",
    "evaluation": "trials that are measured otherwise cannot be compared",
    "train.validations_per_epoch": "trials are compared validation by validation",
    "update": "a search trains from the beginning",
}
"""Options that all trials must share, and why."""


class Space:
    """What may change in a base run, and between what.

    Args:
        options: By dotted option of a `RunConfig`.
        base: The run that they change.

    Raises:
        ConfigError: An option is unknown, must not change (`FIXED`), or may take a value that the
            base does not take.
    """

    def __init__(self, options: Mapping[str, SearchedOption], base: RunConfig) -> None:
        self.options, self.base = options, base
        for name, option in options.items():
            _check_free(name)
            values = option.ends if option.choices is None else option.choices
            for value in values:
                self.run({name: value}, place=f"space.{name}, value {value!r}")

    def draw(self, trial: Trial) -> Settings:
        """The values of one trial; one that has drawn them already has the same again."""
        return {name: _draw(trial, name, option) for name, option in self.options.items()}

    def read(self, drawn: Mapping[str, object]) -> Settings:
        """The values behind what Optuna has stored of a trial."""
        found: Settings = {}
        for name, value in drawn.items():
            choices = self.options[name].choices
            found[name] = value if choices is None else json.loads(str(value))
        return found

    def run(
        self, settings: Settings, output: Path | None = None, place: str = "trial"
    ) -> RunConfig:
        """The base run with these values and, if it is given, another output folder.

        Raises:
            ConfigError: The values do not fit together.
        """
        tree = self.base.model_dump(mode="json")
        for name, value in settings.items():
            set_option(tree, name, value)
        if output is not None:
            tree["output"] = str(output)
        return RunConfig.of(tree, place)

    def of_base(self) -> dict[str, str | int | float]:
        """The base's own values as Optuna names them, of options whose space holds them."""
        tree = self.base.model_dump(mode="json")
        found: dict[str, str | int | float] = {}
        for name, option in self.options.items():
            if option.choices is not None:
                same = [value for value in option.choices if self.run({name: value}) == self.base]
                if same:
                    found[name] = _label(same[0])
                continue
            value, (low, high) = _at(tree, name), option.ends
            if isinstance(value, int | float) and low <= value <= high:
                found[name] = value
        return found


def _draw(trial: Trial, name: str, option: SearchedOption) -> object:
    if option.choices is not None:  # Optuna stores plain values alone, so it is given their JSON
        labels = [_label(choice) for choice in option.choices]
        return json.loads(trial.suggest_categorical(name, labels))
    low, high = option.ends
    if option.whole:
        return trial.suggest_int(name, low, high, log=option.log)
    return trial.suggest_float(name, low, high, log=option.log)


def _label(choice: object) -> str:
    return json.dumps(choice, ensure_ascii=False, sort_keys=True)


def _at(tree: dict, name: str) -> object:
    value: object = tree
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_free(name: str) -> None:
    for fixed, reason in FIXED.items():
        if name == fixed or name.startswith(f"{fixed}."):
            raise ConfigError(
                f"{name} is to be searched",
                where="space",
                expected=f"the same {fixed} for all trials: {reason}",
                fix="remove it from the space, and set it in the base",
            )
