"""`llm-influence analyze`: what makes behaviour count, from influence tables without the model.

`llm-influence fairness-test` and `review`: what an audit needs of the model, and of people.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_influence.cli.options import ItemsFile, LogSource, ModelFolder, UsersFile
from llm_influence.errors import ConfigError, choices

if TYPE_CHECKING:
    from llm_influence.analysis.output import Analysis
    from llm_influence.analysis.tables import InfluenceView
    from llm_influence.config.analyses import Response

analyze = typer.Typer(
    no_args_is_help=True,
    help="Ask influence tables, without the model: which factors matter, and how much.",
)


@dataclass(frozen=True)
class Shared:
    """What every analysis is told: which tables, what of them, with what, and where to write."""

    tables: Annotated[list[Path], typer.Argument(help="folders that `explain` wrote, or files")]
    out: Annotated[Path, typer.Option(help="folder for JSON, CSV and figures")]
    items: Annotated[
        Path | None, typer.Option(help="item table; default: items.parquet beside the tables")
    ] = None
    users: Annotated[
        Path | None, typer.Option(help="user table; default: users.parquet beside the tables")
    ] = None
    method: Annotated[str | None, typer.Option(help="take this method's explanations only")] = None
    target: Annotated[
        str | None,
        typer.Option(help="take this kind of target only: item, contrast, behavior, slate"),
    ] = None
    run: Annotated[str | None, typer.Option("--run", help="take explanations of this run only")] = (
        None
    )
    memory: Annotated[str, typer.Option(help="of DuckDB; rows beyond it go to --temp")] = "2GB"
    temp: Annotated[Path | None, typer.Option(help="folder for temporary files")] = None
    threads: Annotated[int | None, typer.Option(min=1, help="of DuckDB; default: all cores")] = None

    def open(self, tables: list[Path] | None = None) -> InfluenceView:
        """The tables, or others opened in the same way.

        Raises:
            DataError, SchemaError, ConfigError: As `InfluenceView`.
        """
        from llm_influence.analysis.tables import InfluenceView
        from llm_influence.config.analyses import Choice, Resources

        return InfluenceView(
            self.tables if tables is None else tables,
            items=self.items,
            users=self.users,
            choice=Choice(self.method, self.target, self.run),
            resources=Resources(self.memory, self.temp, self.threads),
        )

    def finish(self, analysis: Analysis) -> None:
        """Print the short table and write the files."""
        for line in analysis.shown:
            typer.echo(line)
        files = analysis.write(self.out)
        typer.echo(f"{len(files)} files in {self.out}: {files[-1].name} has everything")


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is `Shared`, as typer takes it: with the options in it."""
    shared = inspect.signature(Shared, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def told(**given: object) -> None:
        command(Shared(**{name: given.pop(name) for name in shared}), **given)  # type: ignore[arg-type]

    first, later = list(shared.values())[:2], list(shared.values())[2:]
    options = [each.replace(kind=each.KEYWORD_ONLY) for each in (*first, *own, *later)]
    told.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    told.__annotations__ = {each.name: each.annotation for each in options}
    return told


@analyze.command()
@with_shared
def factors(
    shared: Shared,
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
) -> None:
    """Rank what events have in common by how far it moves their influence.

    Writes factors.json, and factors_ranking, factors_effects, factors_interactions and
    factors_weights as CSV and figures.
    """
    from llm_influence.analysis.factors import analyze_factors
    from llm_influence.config.analyses import FactorOptions

    options = FactorOptions(
        factors=None if factor is None else tuple(factor),
        response=as_response(response),
        match=match,
        alpha=alpha,
        sample=sample,
        seed=seed,
    )
    with shared.open() as view:
        shared.finish(analyze_factors(view, options))


@analyze.command()
@with_shared
def channels(
    shared: Shared,
    channel: Annotated[
        str, typer.Option(help="column whose values are channels: behavior, item:campaign_type")
    ],
    touch: Annotated[
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
) -> None:
    """Credit conversions to channels: the model beside attribution rules, Markov chain and Shapley.

    Writes channels.json, and channels_shares, channels_channels and
    channels_distances as CSV and figures.
    """
    from llm_influence.analysis.channels import analyze_channels
    from llm_influence.config.analyses import ESTIMATORS, ChannelOptions

    options = ChannelOptions(
        channel=channel,
        touches=None if touch is None else tuple(touch),
        outcomes=outcomes,
        conversion=conversion,
        positive_from=positive_from,
        half_life=half_life,
        estimators=ESTIMATORS if estimator is None else tuple(estimator),
        resamples=resamples,
        seed=seed,
    )
    with shared.open() as view:
        shared.finish(analyze_channels(view, options))


@analyze.command()
@with_shared
def audit(
    shared: Shared,
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
) -> None:
    """Ask whether sensitive features of users decide what they get.

    Reads fairness_test.parquet beside the tables too, if `llm-influence fairness-test` wrote it. Writes audit.json,
    and audit_verdict, audit_differences, audit_proxies and audit_fairness_test as CSV and figures.
    """
    from llm_influence.analysis.audit import analyze_audit
    from llm_influence.config.analyses import AuditOptions

    options = AuditOptions(
        sensitive=tuple(sensitive),
        alpha=alpha,
        tolerated=tolerated,
        shuffles=shuffles,
        most_users=most_users,
        seed=seed,
    )
    with shared.open() as view:
        shared.finish(analyze_audit(view, options))


@analyze.command()
@with_shared
def dynamics(
    shared: Shared,
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
) -> None:
    """Measure how influence fades with age, when it changed, and what moved between two tables.

    Writes dynamics.json, and dynamics_half_lives, dynamics_decay, dynamics_drift,
    dynamics_changes and dynamics_moved as CSV and figures.
    """
    from llm_influence.analysis.dynamics import analyze_dynamics
    from llm_influence.config.analyses import DynamicsOptions

    options = DynamicsOptions(
        by=None if by is None else tuple(by),
        window=window,
        response=as_response(response),
        match=match,
        alpha=alpha,
        seed=seed,
    )

    with shared.open() as view:
        if not against:
            shared.finish(analyze_dynamics(view, options))
            return
        with shared.open(against) as earlier:
            shared.finish(analyze_dynamics(view, options, earlier))


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


def fairness_test(
    model: ModelFolder,
    out: Annotated[
        Path, typer.Option(help="folder of the influence tables; gets fairness_test.parquet")
    ],
    feature: Annotated[list[str], typer.Option(help="of users, as gender; repeatable")],
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    k: Annotated[int, typer.Option(help="recommendations compared")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="histories at a time")] = 64,
) -> None:
    """Change a feature of every user, all else the same: does the recommendation change?"""
    from llm_influence.batch.studies import run_fairness_test
    from llm_influence.run import Run

    run = Run.open(model)
    found = run_fairness_test(
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
    typer.echo(f"fairness test: {found.path}")


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
    from llm_influence.analysis.tables import InfluenceView
    from llm_influence.config.analyses import Choice

    with InfluenceView(tables, choice=Choice(method, target)) as view:
        queue = update_queue(view, out, size=size, seed=seed)
    typer.echo(
        f"{queue.waiting} wait, {queue.decided('accept')} accepted, "
        f"{queue.decided('reject')} rejected: {out}"
    )
