"""`llm-influence planted`, `planted-fraud`: generated logs whose true influence is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import Overrides, expanded
from llm_influence.config.data import PlantedConfig, PlantedFraudConfig

OutFolder = Annotated[
    Path, typer.Option(help="Folder for the log and its true influence.", show_default=False)
]
Settings = Annotated[Path | None, typer.Option("--config", help="YAML file with the options.")]


@expanded(PlantedConfig)
def planted(
    context: typer.Context, overrides: Overrides, out: OutFolder, config: Settings = None
) -> None:
    """Generate a log with the true influence of every event beside it."""
    from llm_influence.datasets.planted import make_planted

    log, truth = make_planted(PlantedConfig.load(config, overrides.typed), folder=out)
    causes = sum(int(row.sum()) for row in truth.is_cause)
    explained = sum(len(row) for row in truth.is_cause)
    typer.echo(
        f"{len(log):,} users, {log.num_events:,} events, {len(log.catalogue)} items in {out}"
    )
    typer.echo(f"{causes:,} of {explained:,} explained events are causes")


@expanded(PlantedFraudConfig)
def planted_fraud(
    context: typer.Context, overrides: Overrides, out: OutFolder, config: Settings = None
) -> None:
    """Generate bank accounts, some taken over, with the events that caused each alarm."""
    from llm_influence.datasets.fraud import make_fraud

    log, truth = make_fraud(PlantedFraudConfig.load(config, overrides.typed), folder=out)
    typer.echo(f"{len(log):,} generated accounts, {log.num_events:,} events in {out}")
    typer.echo(f"{truth.is_fraud.sum():,} of {len(truth.alarms):,} alarms are fraud")
