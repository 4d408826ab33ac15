"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option(help="YAML file of the run; default: the demo's")]
ModelFolder = Annotated[Path, typer.Option("--model", help="folder that `finetune` wrote")]
LogSource = Annotated[
    str | None,
    typer.Option("--log", help="behaviour log, a file or public name; default: the run's own"),
]
ItemsFile = Annotated[str | None, typer.Option(help="item table that goes with --log")]
UsersFile = Annotated[str | None, typer.Option(help="user table that goes with --log")]
RulesFile = Annotated[Path | None, typer.Option(help="YAML file of rules; default: the run's own")]
