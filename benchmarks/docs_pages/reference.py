"""Write docs/reference: the command line, the configuration and the Python API.

    python -m benchmarks.docs_pages.reference

Every page comes from the declarations in the package, so a page cannot differ from the code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import llm_influence
from llm_influence.cli import app
from llm_influence.cli.options import leaves
from llm_influence.config.data import PlantedConfig, PlantedFraudConfig
from llm_influence.config.model import ScratchConfig
from llm_influence.config.run import RunConfig, SearchConfig

FOLDER = Path("docs/reference")
DOCUMENTS: dict[str, tuple[type[BaseModel], str]] = {
    "A run": (RunConfig, "`llm-influence finetune --config run.yaml`, `RunConfig` in Python."),
    "A search": (SearchConfig, "`llm-influence search space.yaml`, `SearchConfig` in Python."),
    "A generated log": (PlantedConfig, "`llm-influence planted`, `PlantedConfig` in Python."),
    "Generated accounts": (
        PlantedFraudConfig,
        "`llm-influence planted-fraud`, `PlantedFraudConfig` in Python.",
    ),
    "A decoder from scratch": (ScratchConfig, "`llm-influence tokenizer`."),
}


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name and text of every page."""
    return {
        "cli.md": "\n".join(command_line()) + "\n",
        "configuration.md": "\n".join(configuration()) + "\n",
        "api.md": "\n".join(api()) + "\n",
    }


def command_line() -> Iterator[str]:
    """The page of commands, in the order of `llm-influence --help`."""
    yield "# Command line\n"
    yield "`llm-influence COMMAND --help` prints the same. Exit status 0: done. 1: an error in"
    yield "one plain line. 2: an option that the command does not have. 130: interrupted.\n"
    group = typer.main.get_command(app)
    for name, command in _commands(group):
        yield f"## {name}\n"
        yield (command.help or "").strip() + "\n"
        yield "| option | value | default | meaning |"
        yield "|---|---|---|---|"
        linked = False
        for option in command.params:
            panel = getattr(option, "rich_help_panel", None) or ""
            if panel.startswith("Options of section"):
                linked = True
            elif option.name != "help":
                yield _option_row(option)
        if linked:
            every = "every option of the [configuration](configuration.md)"
            yield f"| `--section.option` | | | {every} |"
        yield ""


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        if getattr(command, "commands", None):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _option_row(option: Any) -> str:
    names = option.opts if option.param_type_name == "option" else [option.name.upper()]
    shown = ", ".join(f"`{name}`" for name in names)
    values = option.metavar or getattr(option.type_descriptor.annotation, "__name__", "")
    default = "required" if option.required else _default(option)
    return f"| {shown} | {_cell(values)} | {default} | {_cell(getattr(option, 'help', '') or '')} |"


def _default(option: Any) -> str:
    value = option.default
    if value is None or value is False or callable(value) or value == []:
        return ""
    return f"`{value}`"


def configuration() -> Iterator[str]:
    """The page of options, a table a section."""
    yield "# Configuration\n"
    yield "A configuration is a YAML file, a Python object, or `--section.option value` on the"
    yield "command line. Unknown options are errors that name the nearest valid one."
    yield "`llm-influence config --defaults` prints this page as YAML.\n"
    for title, (document, use) in DOCUMENTS.items():
        yield f"## {title}\n"
        yield use + "\n"
        section = None
        for leaf in leaves(document):
            if leaf.section != section:
                if section is not None:
                    yield ""
                section = leaf.section
                if section:
                    yield f"### {section}\n"
                yield "| option | values | default | meaning |"
                yield "|---|---|---|---|"
            default = f"`{leaf.default}`" if leaf.default != "required" else "required"
            meaning = _cell(leaf.info.description or "")
            yield f"| `{leaf.name}` | {_cell(leaf.values)} | {default} | {meaning} |"
        yield ""


def api() -> Iterator[str]:
    """The page of public names, in the groups of `llm_influence/__init__.pyi`."""
    yield "# Python API\n"
    yield "All names are imported from `llm_influence`.\n"
    for group, names in public_names().items():
        yield f"## {group}\n"
        for name, home in sorted(names.items()):
            if name != "METHODS":
                yield f"::: llm_influence.{home}.{name}\n"


def public_names() -> dict[str, dict[str, str]]:
    """Group -> name -> module, as the stub of the package declares them."""
    stub = Path(llm_influence.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    titles = {n: line[2:] for n, line in enumerate(stub.splitlines(), 1) if line[:2] == "# "}
    groups: dict[str, dict[str, str]] = {title: {} for title in titles.values()}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            title = titles[max(line for line in titles if line < node.lineno)]
            groups[title] |= {alias.name: node.module or "" for alias in node.names}
    return groups


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
