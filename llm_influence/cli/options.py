"""Options of commands: those that several share, and those made from a declaration.

A configuration or an options dataclass declares an option once: name, type, default, help. A
command takes it as a parameter, and `expanded` puts one command-line option in for every field.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_influence.config.document import Document, parse_yaml
from llm_influence.errors import ConfigError, unknown

ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML file of the run. Without it, the defaults are used.")
]
ModelFolder = Annotated[
    Path, typer.Option("--model", help="Run folder that `finetune` wrote.", show_default=False)
]
LogSource = Annotated[
    str | None,
    typer.Option(
        "--log", help="Behaviour log: a file or a public data set. Default: the run's own log."
    ),
]
ItemsFile = Annotated[str | None, typer.Option(help="Item table that goes with --log.")]
UsersFile = Annotated[str | None, typer.Option(help="User table that goes with --log.")]
RulesFile = Annotated[
    Path | None, typer.Option(help="YAML file of rules. Default: the run's own rules.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of commands with a configuration: `Document.load` names unknown options."""


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """A command that answers Ctrl-C with one line and exit status 130."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:  # noqa: ANN401
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            typer.echo("interrupted. Run the same command again to continue.", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run


@dataclasses.dataclass(frozen=True, slots=True)
class Overrides:
    """The options of a configuration that were typed, as ``["--train.epochs", "4"]``."""

    typed: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One option of a configuration.

    Attributes:
        name: Dotted name, as ``train.epochs``.
        section: The first part of the name; empty for options of the document itself.
        info: Its declaration.
    """

    name: str
    section: str
    info: FieldInfo

    @property
    def default(self) -> str:
        """The default as YAML writes it on one line; ``required`` if there is none."""
        if self.info.is_required():
            return "required"
        value = self.info.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        if isinstance(value, tuple | set | frozenset):
            value = list(value)
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        return text.removesuffix("...\n").strip()

    @property
    def values(self) -> str:
        """The values that it takes, for help: ``int``, ``adam|sgd``, ``true|false``."""
        return values_of(self.info.annotation)


def values_of(annotation: object) -> str:
    """The values of a type, in words of the command line."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(values_of(p) for p in parts if p is not type(None)))
    if origin is Annotated:
        return values_of(parts[0])
    if annotation is bool:
        return "true|false"
    if isinstance(annotation, type) and annotation in (int, float, str):
        return {"int": "int", "float": "number", "str": "text"}[annotation.__name__]
    return "path" if annotation is Path else "yaml"


def leaves(document: type[BaseModel], before: str = "") -> Iterator[Leaf]:
    """Every option of a configuration, in the order of its declaration."""
    for name, info in document.model_fields.items():
        dotted, inner = f"{before}{name}", section_of(info.annotation)
        if inner is not None:
            yield from leaves(inner, f"{dotted}.")
        else:
            yield Leaf(dotted, dotted.partition(".")[0] if before else "", info)


def section_of(annotation: object) -> type[BaseModel] | None:
    """The section class behind an annotation, ``Section`` or ``Section | None``."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part if get_origin(annotation) in (None, Union, types.UnionType) else None
    return None


def expanded(document: type[Document] | None = None) -> Callable[[Callable[..., None]], Any]:
    """A command with one option for every field of its dataclass parameters.

    A parameter of type `Overrides` is replaced by the options of ``document``; a parameter whose
    type is a dataclass is replaced by that dataclass's fields, which say their help in
    ``metadata["help"]`` and may name another flag in ``metadata["flag"]``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        makers: dict[str, tuple[Any, list[str]]] = {}
        options: list[inspect.Parameter] = []
        for name, parameter in own.items():
            if parameter.annotation is Overrides:
                made = [_of_leaf(leaf) for leaf in leaves(document)] if document else []
            elif dataclasses.is_dataclass(parameter.annotation):
                made = _of_dataclass(parameter.annotation)
            else:
                options.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
                continue
            makers[name] = (parameter.annotation, [option.name for option in made])
            options += made

        @wraps(command)
        def run(**given: Any) -> None:  # noqa: ANN401
            for name, (kind, fields) in makers.items():
                values = {field: given.pop(field) for field in fields}
                given[name] = (
                    _typed(values, given.get("context"))
                    if kind is Overrides
                    else _made(kind, values)
                )
            command(**given)

        required = [o for o in options if o.default is inspect.Parameter.empty]
        optional = [o for o in options if o.default is not inspect.Parameter.empty]
        run.__signature__ = inspect.Signature([*required, *optional])  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in options}
        return run

    return decorate


def _of_leaf(leaf: Leaf) -> inspect.Parameter:
    option = typer.Option(
        f"--{leaf.name}",
        help=_sentence(leaf.info.description or ""),
        show_default=leaf.default,
        metavar=leaf.values,
        rich_help_panel=f"Options of section {leaf.section}" if leaf.section else "Options",
    )
    return inspect.Parameter(
        leaf.name.replace(".", "__"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _of_dataclass(kind: Any) -> list[inspect.Parameter]:  # noqa: ANN401
    """One parameter a field; a field that is annotated for typer already stays as it is."""
    hints, made = get_type_hints(kind, include_extras=True), []
    for field in dataclasses.fields(kind):
        annotation = hints[field.name]
        default = _default(field)
        if get_origin(annotation) is not Annotated:
            flag = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
            values = values_of(annotation)
            option = typer.Option(
                flag,
                help=_sentence(field.metadata.get("help", "")),
                metavar=values if "|" in values else None,
                min=field.metadata.get("min"),
                max=field.metadata.get("max"),
            )
            annotation = Annotated[_plain(annotation), option]
            default = list(default) if isinstance(default, tuple) else default
        made.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    return made


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _plain(annotation: object) -> object:
    """The type as typer reads it: a tuple of texts is a repeatable option."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[str]
    if origin in (Union, types.UnionType):
        inner = [_plain(part) for part in parts if part is not type(None)]
        return Union[(*inner[:1], type(None))] if type(None) in parts else inner[0]
    return annotation


def _typed(values: dict[str, str | None], context: typer.Context | None) -> Overrides:
    words = [
        word
        for name, text in values.items()
        if text is not None
        for word in (f"--{name.replace('__', '.')}", text)
    ]
    return Overrides([*words, *(context.args if context is not None else [])])


def _made(kind: Any, values: dict[str, Any]) -> object:  # noqa: ANN401
    """The dataclass of what was typed.

    Raises:
        ConfigError: A value is none of the allowed ones.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        known = [str(c) for part in (hints[name], *get_args(hints[name])) for c in _literals(part)]
        for one in value if isinstance(value, list) else [value]:
            if known and one is not None and str(one) not in known:
                flag = f"--{name.replace('_', '-')}"
                raise unknown(ConfigError, "value", one, known, where=flag)
        values[name] = tuple(value) if get_origin(_some(hints[name])) is tuple and value else value
    return kind(**values)


def _some(annotation: object) -> object:
    """The type of a value that is there: ``X`` of ``X | None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _literals(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _sentence(text: str) -> str:
    """Help that begins with a capital and ends with a full stop."""
    text = text.strip()
    return text and text[0].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


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
        options[name] = parse_yaml(text, f"--option {name}")
    return options


def options_by_method(words: list[str], methods: list[str]) -> dict[str, dict[str, object]]:
    """Options written as ``method.name=value``, by method."""
    by_method: dict[str, dict[str, object]] = {method: {} for method in methods}
    for key, value in method_options(words).items():
        method, dot, name = key.partition(".")
        if not dot or method not in by_method:
            raise ConfigError(
                f"cannot read {key!r}",
                where="--option",
                expected="method.name=value with a method of --methods",
                fix=f"write it as --option {methods[0] if methods else 'method'}.steps=64",
            )
        by_method[method][name] = value
    return by_method
