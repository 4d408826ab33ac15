"""`llm-influence flips` and `review`: what an audit needs of the model, and of people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import ItemsFile, LogSource, ModelFolder, UsersFile


def flips(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="folder of the influence tables; gets flips.parquet")],
    feature: Annotated[list[str], typer.Option(help="of users, as gender; repeatable")],
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
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


def review(
    tables: Annotated[list[Path], typer.Option(help="folder that `explain` wrote; repeatable")],
    out: Annotated[Path, typer.Option(help="the CSV; decisions that stand there are kept")],
    size: Annotated[int, typer.Option(help="explanations that are to wait for a decision")] = 20,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    method: Annotated[str | None, typer.Option(help="take this method's explanations only")] = None,
    target: Annotated[str | None, typer.Option(help="take this kind of target only")] = None,
) -> None:
    """Draw risky explanations into a CSV where people write accept or reject, and a note.

    Run again, it keeps what is decided and draws others. `report --review` withholds what was
    rejected.
    """
    from llm_influence.analysis.review import update_queue
    from llm_influence.analysis.tables import Choice, InfluenceView

    with InfluenceView(tables, choice=Choice(method, target)) as view:
        queue = update_queue(view, out, size=size, seed=seed)
    typer.echo(
        f"{queue.waiting} wait, {queue.decided('accept')} accepted, "
        f"{queue.decided('reject')} rejected: {out}"
    )
