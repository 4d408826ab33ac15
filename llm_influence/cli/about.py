"""`llm-influence config`, `env`: every option with its default, and facts for bug reports."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from typing import Annotated

import typer
import yaml

from llm_influence import __version__
from llm_influence.cli.options import AsJson, ConfigFile, Leaf, leaves
from llm_influence.config.run import RunConfig
from llm_influence.config.training import TrainConfig

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "pyarrow",
    "pydantic",
    "scikit-learn",
    "duckdb",
    "optuna",
)


def config(
    context: typer.Context,
    config: ConfigFile = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Print every option with its default and meaning.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, for editors.")
    ] = False,
) -> None:
    """Check a configuration and print it whole, as YAML.

    Options may follow, as for `finetune`: --train.epochs 4.
    """
    if schema:
        typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
    elif defaults:
        typer.echo(commented_defaults())
    else:
        loaded = RunConfig.load(config, context.args)
        typer.echo(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False), nl=False)


def commented_defaults() -> str:
    """The default configuration as YAML, with the meaning of every option beside it."""
    lines: list[str] = []
    opened: list[str] = []
    for leaf in leaves(RunConfig):
        *sections, option = leaf.name.split(".")
        shared = 0
        while shared < min(len(opened), len(sections)) and opened[shared] == sections[shared]:
            shared += 1
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
        opened = sections
        lines.append(f"{'  ' * len(sections)}{option}: {leaf.default}{_meaning(leaf)}")
    return "\n".join(lines)


def _meaning(leaf: Leaf) -> str:
    return f"  # {leaf.info.description}" if leaf.info.description else ""


def env(json_: AsJson = False) -> None:
    """Print versions, cores, accelerator and cache folder, for bug reports."""
    facts = environment()
    if json_:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{width}}  {value}")


def environment() -> dict[str, object]:
    """Facts about this installation and machine."""
    import torch

    from llm_influence.datasets.assets import cache_folder
    from llm_influence.training.base_trainer import wants_bf16

    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return {
        "llm_influence": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{name: _version(name) for name in LIBRARIES},
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": str(accelerator) if accelerator is not None else "none",
        "bf16": wants_bf16(TrainConfig()),
        "cache": str(cache_folder()),
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
