"""`llm-influence planted`, `planted-fraud`: logs whose true influence is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def planted(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for the log, its truth and its law")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a PlantedConfig")] = None,
) -> None:
    """Make a log by a known law, with the true influence of every event beside it.

    Any option of PlantedConfig may follow: --users 500 --half_life 3600 --seed 1.
    """
    from llm_influence.config.synthetic import PlantedConfig
    from llm_influence.datasets.planted import write_planted

    log, truth = write_planted(PlantedConfig.load(config, context.args), out)
    causes = sum(int(row.sum()) for row in truth.is_cause)
    explained = sum(len(row) for row in truth.is_cause)
    typer.echo(
        f"{len(log):,} users, {log.num_events:,} events, {len(log.catalogue)} items in {out}"
    )
    typer.echo(f"{causes:,} of {explained:,} explained events are causes")


def planted_fraud(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for the log, its truth and its law")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a PlantedFraudConfig")] = None,
) -> None:
    """Make up bank accounts, some taken over, with the events that raised each alarm beside them.

    Any option of PlantedFraudConfig may follow: --accounts 500 --fraud_share 0.1 --seed 1.
    """
    from llm_influence.config.synthetic import PlantedFraudConfig
    from llm_influence.datasets.fraud import write_planted_fraud

    log, truth = write_planted_fraud(PlantedFraudConfig.load(config, context.args), out)
    typer.echo(f"{len(log):,} generated accounts, {log.num_events:,} events in {out}")
    typer.echo(f"{truth.is_fraud.sum():,} of {len(truth.alarms):,} alarms are fraud")
