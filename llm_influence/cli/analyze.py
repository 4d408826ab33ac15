"""`llm-influence analyze`: what makes behaviour count, from influence tables without the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_influence.errors import ConfigError, choices

if TYPE_CHECKING:
    from llm_influence.analysis.coded import Response
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

    options = FactorOptions(
        factors=None if factor is None else tuple(factor),
        response=as_response(response),
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


@analyze.command()
def audit(
    tables: Tables,
    out: Out,
    sensitive: Annotated[
        list[str], typer.Option(help="a feature of users, as user:gender; repeatable")
    ],
    alpha: Annotated[
        float, typer.Option(help="chance of accusing a feature that means nothing")
    ] = 0.05,
    tolerated: Annotated[
        float,
        typer.Option(help="share of users whose recommendation may change with the feature alone"),
    ] = 0.05,
    shuffles: Annotated[int, typer.Option(help="for every permutation test")] = 999,
    most_users: Annotated[int, typer.Option(help="drawn for the tests where there are more")] = (
        20_000
    ),
    seed: Annotated[int, typer.Option(help="of the shuffles and the drawn users")] = 0,
    items: Items = None,
    users: Users = None,
    method: Method = None,
    target: Target = None,
    run: RunName = None,
    memory: Memory = "2GB",
    temp: Temp = None,
    threads: Threads = None,
) -> None:
    """Ask whether sensitive features of users decide what they get.

    Reads flips.parquet beside the tables too, if `llm-influence flips` wrote it. Writes audit.json,
    and audit_verdict, audit_gaps, audit_proxies and audit_flips as CSV and figures.
    """
    from llm_influence.analysis.audit import AuditOptions, analyze_audit

    options = AuditOptions(
        sensitive=tuple(sensitive),
        alpha=alpha,
        tolerated=tolerated,
        shuffles=shuffles,
        most_users=most_users,
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
        finish(analyze_audit(view, options), out)


@analyze.command()
def dynamics(
    tables: Tables,
    out: Out,
    by: Annotated[
        list[str] | None,
        typer.Option(help="a column, as behavior or item:genres; repeatable; default: the usual"),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="day, week, month or a number of days; default: by the time covered"),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="tables of another model or period, the earlier; repeatable"),
    ] = None,
    response: Annotated[str, typer.Option(help="score, or size: without its sign")] = "score",
    match: Annotated[
        str | None,
        typer.Option(help="column as match:genres: which events speak for the target"),
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="chance of any false alarm among all groups")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="of what change points are held against")] = 0,
    items: Items = None,
    users: Users = None,
    method: Method = None,
    target: Target = None,
    run: RunName = None,
    memory: Memory = "2GB",
    temp: Temp = None,
    threads: Threads = None,
) -> None:
    """Measure how influence fades with age, when it changed, and what moved between two tables.

    Writes dynamics.json, and dynamics_half_lives, dynamics_decay, dynamics_drift,
    dynamics_changes and dynamics_moved as CSV and figures.
    """
    from llm_influence.analysis.dynamics import DynamicsOptions, analyze_dynamics

    options = DynamicsOptions(
        by=None if by is None else tuple(by),
        window=window,
        response=as_response(response),
        match=match,
        alpha=alpha,
        seed=seed,
    )

    def opened(places: list[Path]) -> InfluenceView:
        return open_view(
            places,
            items=items,
            users=users,
            method=method,
            target=target,
            run=run,
            memory=memory,
            temp=temp,
            threads=threads,
        )

    with opened(tables) as view:
        if not against:
            finish(analyze_dynamics(view, options), out)
            return
        with opened(against) as earlier:
            finish(analyze_dynamics(view, options, earlier), out)


def as_response(name: str) -> Response:
    """What of a score is asked.

    Raises:
        ConfigError: It is neither ``score`` nor ``size``.
    """
    if name not in ("score", "size"):
        raise ConfigError(
            f"unknown response {name!r}",
            where="--response",
            expected=choices(("score", "size"), name),
            fix="correct the option",
        )
    return "size" if name == "size" else "score"


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
