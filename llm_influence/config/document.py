"""Base classes of all configurations, and the reading of YAML files and command-line overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from llm_influence.errors import ConfigError, InfluenceError, choices, unreadable
from llm_influence.utils import write_text

Error = TypeVar("Error", bound=InfluenceError)


TEXTS = (str, str | None, list[str], list[str] | None, str | list[str] | None, dict[str, str])
"""Annotations of options whose values are texts alone."""
MAX_DEPTH, MAX_COPIES = 50, 100_000
"""Limits of a YAML file: nested brackets, and values that aliases repeat."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and values cannot be changed.

    Texts stay as they are written: ``1.10``, ``true`` and ``0110`` in an option that holds a text
    are these characters. Numbers are finite.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_texts(cls, tree: object) -> object:
        if not isinstance(tree, dict):
            return tree
        texts = {n for n, field in cls.model_fields.items() if field.annotation in TEXTS}
        return {name: as_written(v) if name in texts else v for name, v in tree.items()}

    @classmethod
    def of(
        cls,
        tree: object,
        where: str,
        *,
        what: str = "option",
        kind: type[InfluenceError] = ConfigError,
    ) -> Self:
        """Make a section from plain data.

        Args:
            tree: A mapping of option names to values, nested as the sections are.
            where: The file or object the data comes from, for messages.
            what: What messages call a key.
            kind: Class of the error.

        Raises:
            ConfigError: A key or value is wrong.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _as_config_error(error, where, cls, what, kind) from error


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


class _Written(float):
    """A number of a YAML file, with its characters: ``1.10``."""

    written: str


def as_written(value: object) -> object:
    """The characters of a YAML value, ``1.10`` or ``true``; of the values inside a collection."""
    if isinstance(value, list):
        return [as_written(entry) for entry in value]
    if isinstance(value, dict):
        return {key: as_written(entry) for key, entry in value.items()}
    if isinstance(value, bool):
        return str(value).lower()
    return getattr(value, "written", value)


class _Loader(yaml.SafeLoader):
    """Plain YAML data: null, true, false, decimal numbers, texts, lists and mappings.

    Keys are texts. Everything else of YAML 1.1 (``NO``, octal numbers, dates) is a text too. A key
    that stands twice, another tag, deep nesting and aliases that grow without bound are errors.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}
    depth = 0

    def get_single_node(self) -> yaml.Node | None:
        """The tree of the file, refused if its aliases repeat too many values."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._size(node, {})
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """Read one value and the values inside it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} values inside each other"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        """Read a mapping; its keys are different texts."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a list or mapping as a key"
            elif key.value in seen:
                problem = f"key {key.value!r} stands twice"
            else:
                seen.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ANN401
        """A mapping with its keys as they are written."""
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_number(self, node: yaml.ScalarNode) -> object:
        """A finite number that keeps its characters; a text if a number would lose some."""
        text = node.value
        if text.lstrip("-").isdecimal():
            exact = len(text) < 18 and str(int(text)) == text
            return int(text) if exact else text
        number = _Written(text)
        number.written = text
        return number

    def construct_other(self, node: yaml.Node) -> None:
        """Refuse a tag that plain data does not have."""
        problem = f"tag {node.tag.replace('tag:yaml.org,2002:', '!!')!r}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def _size(self, node: yaml.Node, sizes: dict[int, int]) -> int:
        """Number of values inside a node, every alias counted again."""
        if id(node) in sizes:
            return sizes[id(node)]
        sizes[id(node)] = MAX_COPIES**2  # an alias inside its own anchor
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        inside = [value for _, value in parts] if pairs else parts
        size = 1 + sum(self._size(part, sizes) for part in inside)
        sizes[id(node)] = size
        if size > MAX_COPIES + len(sizes):
            raise yaml.MarkedYAMLError(
                problem="aliases repeat too many values", problem_mark=node.start_mark
            )
        return size


_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<$"), ["<"])
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(~|null|Null|NULL|)$"), [*"~nN", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(true|false)$"), [*"tf"])
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$"),
    [*"-.0123456789"],
)
for _name, _construct in {
    "null": _Loader.construct_yaml_null,
    "bool": _Loader.construct_yaml_bool,
    "float": _Loader.construct_number,
    "str": _Loader.construct_yaml_str,
    "seq": _Loader.construct_yaml_seq,
    "map": _Loader.construct_yaml_map,
}.items():
    _Loader.add_constructor(f"{_TAG}{_name}", _construct)
_Loader.add_constructor(None, _Loader.construct_other)


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
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # wrong tags
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", error)
        reason = f"{problem}, line {mark.line + 1}" if mark else str(error)
        whole = len(text) < 100 and "\n" not in text
        found = f"{text!r} is not YAML ({reason})" if whole else f"not YAML ({reason})"
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
    error: ValidationError,
    where: str,
    root: type[BaseModel],
    what: str,
    kind: type[InfluenceError],
) -> InfluenceError:
    """The first problem that pydantic found, an unknown key before all others."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        place = f"{where}, {cause.where}"
        return kind(cause.found, where=place, expected=cause.expected, fix=cause.fix)
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        expected, fix = choices(_names(root, path[:-1]), path[-1]), f"correct or remove the {what}"
        return kind(f"unknown {what} {dotted!r}", where=where, expected=expected, fix=fix)
    if first["type"] == "missing":
        fix = f"add the {what}"
        return kind(f"{dotted} is missing", where=where, expected="a value", fix=fix)
    message = first["msg"].removeprefix("Value error, ")
    found, fix = f"{dotted or 'it'} is {first.get('input')!r}", f"correct {dotted or f'the {what}'}"
    return kind(found, where=where, expected=message[0].lower() + message[1:], fix=fix)


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
