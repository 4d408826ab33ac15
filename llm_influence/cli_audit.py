"""`llm-influence flips` and `review`: what an audit needs of the model, and of people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelFolder = Annotated[Path, typer.Option("--model", help="folder that `finetune` wrote")]


def flips(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="folder of the influence tables; gets flips.parquet")],
    feature: Annotated[list[str], typer.Option(help="of users, as gender; repeatable")],
    log: Annotated[str | None, typer.Option(help="behaviour log; default: the run's own")] = None,
    items: Annotated[str | None, typer.Option(help="item table that goes with --log")] = None,
    users: Annotated[str | None, typer.Option(help="user table that goes with --log")] = None,
    k: Annotated[int, typer.Option(help="recommendations compared")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="histories at a time")] = 64,
) -> None:
    """Change a feature of every user, all else the same: does the recommendation change?"""
    from llm_influence.jobs.flips import measure_flips
    from llm_influence.run import Run

    run = Run.open(model)
    found = measure_flips(
        run.model,
        run.open_log(log, items=items, users=users),
        [name.removeprefix("user:") for name in feature],
        out,
        k=k,
        batch_size=batch_size,
        run=model.name,
    )
    for name, share in found.changed.items():
        typer.echo(
            f"{name}: the first recommendation of {share:.1%} of {found.users[name]:,} users "
            "changes with another value"
        )
    typer.echo(f"flips: {found.path}")
