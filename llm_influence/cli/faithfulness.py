"""`llm-influence faithfulness`: what scores are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import ModelFolder, options_by_method


def faithfulness(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="folder for shards, tables and the plot")],
    methods: Annotated[str, typer.Option(help="names with commas between; references are added")],
    users: Annotated[int, typer.Option(min=1, help="of the test split, drawn by the seed")] = 100,
    removal: Annotated[str, typer.Option(help="one for all methods: drop or mask")] = "drop",
    check_removal: Annotated[
        str | None, typer.Option(help="a second removal to measure everything under")
    ] = None,
    target: Annotated[
        str, typer.Option(help="top1, item:ID, behavior:NAME, contrast:ID,ID or feedback:ID")
    ] = "top1",
    metrics: Annotated[
        str | None, typer.Option(help="names with commas between; default: all but the exact")
    ] = None,
    events: Annotated[
        int | None,
        typer.Option(min=1, help="histories are cut to so many recent events; default: whole"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="a method's own option, integrated_gradients.steps=64; repeatable"),
    ] = None,
    masks: Annotated[int, typer.Option(help="held-out random sets a user")] = 64,
    exact_events: Annotated[int, typer.Option(help="longest history of the exact_* metrics")] = 10,
    seed: Annotated[int, typer.Option(help="of all draws")] = 0,
    shard_size: Annotated[int, typer.Option(help="users a shard: what a kill may lose")] = 8,
) -> None:
    """Test what scores are worth, methods beside each other; killed and started again, it goes on.

    Writes faithfulness.json, .csv, .md and curves.png.
    """
    from llm_influence.attribution.target import parse_target
    from llm_influence.batch.faithfulness_job import measure_faithfulness
    from llm_influence.faithfulness.options import Options, compared_method
    from llm_influence.faithfulness.result import misleading_lines
    from llm_influence.run import Run

    names = _names(methods)
    own = options_by_method(option or [], names)
    options = Options(
        removal=removal,
        check_removal=check_removal,
        target=parse_target(target),
        metrics=None if metrics is None else tuple(_names(metrics)),
        last=events,
        masks=masks,
        exact_events=exact_events,
        seed=seed,
    )
    compared = [compared_method(name, own[name]) for name in names]
    run = Run.open(model)
    result = measure_faithfulness(
        run.model,
        run.test_histories(users, seed=seed),
        compared,
        out,
        options,
        shard_size=shard_size,
    )
    for line in misleading_lines(result):
        typer.echo(line)
    typer.echo(f"{out}: faithfulness.json, faithfulness.csv, faithfulness.md, curves.png")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
