"""`llm-influence faithfulness`: attribution methods compared by metrics of truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import ModelFolder, options_by_method


def faithfulness(
    model: ModelFolder,
    out: Annotated[
        Path, typer.Option(help="Folder for shards, tables and plot.", show_default=False)
    ],
    methods: Annotated[
        str,
        typer.Option(help="Methods, separated by commas; baselines are added.", show_default=False),
    ],
    users: Annotated[int, typer.Option(min=1, help="Users drawn from the test split.")] = 100,
    removal: Annotated[str, typer.Option(help="drop, mask or replace, for all methods.")] = "drop",
    check_removal: Annotated[
        str | None, typer.Option(help="A second removal, under which all is measured again.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="top1, item:ID, behavior:NAME, contrast:ID,ID or feedback:ID.")
    ] = "top1",
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics, separated by commas. Default: all but the exact ones."),
    ] = None,
    events: Annotated[
        int | None, typer.Option(min=1, help="Most recent events kept of a history. Default: all.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of a method, as integrated_gradients.steps=64. Repeatable."),
    ] = None,
    masks: Annotated[int, typer.Option(help="Held-out random sets of events for a user.")] = 64,
    exact_events: Annotated[
        int, typer.Option(help="Longest history that the exact metrics measure.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    shard_size: Annotated[int, typer.Option(help="Users in one shard.")] = 8,
) -> None:
    """Compare attribution methods by faithfulness. Run it again to continue.

    Writes faithfulness.json, .csv, .md and curves.png.
    """
    from llm_influence.attribution.target import parse_target
    from llm_influence.batch.faithfulness_job import measure_faithfulness
    from llm_influence.faithfulness.evaluate import FaithfulnessOptions, compared_method
    from llm_influence.faithfulness.result import misleading_lines
    from llm_influence.run import Run

    names = _names(methods)
    own = options_by_method(option or [], names)
    options = FaithfulnessOptions(
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
