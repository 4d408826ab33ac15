"""`llm-influence analyze`: what makes behaviour count, from influence tables without the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_influence.errors import ConfigError, choices

if TYPE_CHECKING:
    from llm_influence.analysis.output import Analysis
    from llm_influence.analysis.tables import InfluenceView

analyze = typer.Typer(
    no_args_is_help=True,
    help="Ask influence tables, without the model: which factors matter, and how much.",
)

Tables = Annotated[list[Path], typer.Argument(help="folders that `explain` wrote, or files")]
Out = Annotated[Path, typer.Option(help="folder for JSON, CSV and figures")]
Items = Annotated[
    Path | None, typer.Option(help="item table; default: items.parquet beside the tables")
]
Users = Annotated[
    Path | None, typer.Option(help="user table; default: users.parquet beside the tables")
]
Method = Annotated[str | None, typer.Option(help="take this method's explanations only")]
Target = Annotated[
    str | None, typer.Option(help="take this kind of target only: item, contrast, behavior, slate")
]
RunName = Annotated[str | None, typer.Option("--run", help="take explanations of this run only")]
Memory = Annotated[str, typer.Option(help="of DuckDB; rows beyond it go to --temp")]
Temp = Annotated[Path | None, typer.Option(help="folder for temporary files")]
Threads = Annotated[int | None, typer.Option(min=1, help="of DuckDB; default: all cores")]


@analyze.command()
def factors(
    tables: Tables,
    out: Out,
    factor: Annotated[
        list[str] | None,
        typer.Option(help="a column, as behavior, gap or user:age; repeatable; default: the usual"),
    ] = None,
    response: Annotated[str, typer.Option(help="score, or size: without its sign")] = "score",
    match: Annotated[
        str | None,
        typer.Option(help="column as match:genres: which events speak for the target"),
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="chance of any false alarm among all factors")
    ] = 0.05,
    sample: Annotated[
        int, typer.Option(min=1, help="events for permutation importance, about")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="of the sample and the shuffles")] = 0,
    items: Items = None,
    users: Users = None,
    method: Method = None,
    target: Target = None,
    run: RunName = None,
    memory: Memory = "2GB",
    temp: Temp = None,
    threads: Threads = None,
) -> None:
    """Rank what events have in common by how far it moves their influence.

    Writes factors.json, and factors_ranking, factors_effects, factors_interactions and
    factors_weights as CSV and figures.
    """
    from llm_influence.analysis.factors import FactorOptions, analyze_factors

    if response not in ("score", "size"):
        raise ConfigError(
            f"unknown response {response!r}",
            where="--response",
            expected=choices(("score", "size"), response),
            fix="correct the option",
        )
    options = FactorOptions(
        factors=None if factor is None else tuple(factor),
        response="size" if response == "size" else "score",
        match=match,
        alpha=alpha,
        sample=sample,
        seed=seed,
    )
    with open_view(
        tables,
        items=items,
        users=users,
        method=method,
        target=target,
        run=run,
        memory=memory,
        temp=temp,
        threads=threads,
    ) as view:
        finish(analyze_factors(view, options), out)


@analyze.command()
def attribution(
    tables: Tables,
    out: Out,
    channel: Annotated[
        str, typer.Option(help="column whose values are channels: behavior, item:campaign_type")
    ],
    touches: Annotated[
        list[str] | None,
        typer.Option(help="behaviour that is a touch; repeatable; default: all with a channel"),
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(help="what came after; default: outcomes.parquet beside the tables"),
    ] = None,
    conversion: Annotated[
        str | None, typer.Option(help="behaviour that is a conversion; default: the label says it")
    ] = None,
    positive_from: Annotated[
        float, typer.Option(help="label from which on it is a conversion")
    ] = 1.0,
    half_life: Annotated[float, typer.Option(min=1e-6, help="of time decay, in days")] = 7.0,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help="model, last_touch, first_touch, linear, time_decay, markov, shapley, "
            "shapley_rates; repeatable; default: all"
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="of users, for intervals")] = 200,
    seed: Annotated[int, typer.Option(help="of the resamples")] = 0,
    items: Items = None,
    users: Users = None,
    method: Method = None,
    target: Target = None,
    run: RunName = None,
    memory: Memory = "2GB",
    temp: Temp = None,
    threads: Threads = None,
) -> None:
    """Lay conversions to channels: the model's removal effect beside touch rules, Markov, Shapley.

    Writes attribution.json, and attribution_shares, attribution_channels and
    attribution_distances as CSV and figures.
    """
    from llm_influence.analysis.attribution import (
        ESTIMATORS,
        AttributionOptions,
        analyze_attribution,
    )

    options = AttributionOptions(
        channel=channel,
        touches=None if touches is None else tuple(touches),
        outcomes=outcomes,
        conversion=conversion,
        positive_from=positive_from,
        half_life=half_life,
        estimators=ESTIMATORS if estimator is None else tuple(estimator),
        resamples=resamples,
        seed=seed,
    )
    with open_view(
        tables,
        items=items,
        users=users,
        method=method,
        target=target,
        run=run,
        memory=memory,
        temp=temp,
        threads=threads,
    ) as view:
        finish(analyze_attribution(view, options), out)


def open_view(
    tables: list[Path],
    *,
    items: Path | None,
    users: Path | None,
    method: str | None,
    target: str | None,
    run: str | None,
    memory: str,
    temp: Path | None,
    threads: int | None,
) -> InfluenceView:
    """The tables as every analysis opens them.

    Raises:
        DataError, SchemaError, ConfigError: As `InfluenceView`.
    """
    from llm_influence.analysis.tables import Choice, InfluenceView, Resources

    return InfluenceView(
        tables,
        items=items,
        users=users,
        choice=Choice(method, target, run),
        resources=Resources(memory, temp, threads),
    )


def finish(analysis: Analysis, out: Path) -> None:
    """Print the short table and write the files."""
    for line in analysis.shown:
        typer.echo(line)
    files = analysis.write(out)
    typer.echo(f"{len(files)} files in {out}: {files[-1].name} has everything")
