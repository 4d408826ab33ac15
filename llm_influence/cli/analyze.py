"""`llm-influence analyze`, `fairness-test`, `review`, `faithfulness`: studies of explanations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_influence.cli.options import (
    ItemsFile,
    LogSource,
    ModelFolder,
    UsersFile,
    expanded,
    interruptible,
    options_by_method,
)
from llm_influence.config.analyses import (
    AuditOptions,
    ChannelOptions,
    Choice,
    DynamicsOptions,
    FactorOptions,
    Resources,
)

if TYPE_CHECKING:
    from llm_influence.faithfulness.evaluate import FaithfulnessOptions

analyze = typer.Typer(
    no_args_is_help=True,
    help="Find out what makes behaviour count, from influence tables without the model.",
)


@dataclass(frozen=True)
class Tables:
    """The influence tables, and the folder of the results."""

    tables: Annotated[
        list[Path],
        typer.Argument(help="Folders that `explain` wrote, or Parquet files.", show_default=False),
    ]
    out: Annotated[Path, typer.Option(help="Folder for JSON, CSV and figures.", show_default=False)]
    items: Annotated[
        Path | None, typer.Option(help="Item table. Default: items.parquet beside the tables.")
    ] = None
    users: Annotated[
        Path | None, typer.Option(help="User table. Default: users.parquet beside the tables.")
    ] = None

    def analyze(
        self,
        run: Callable[..., Any],
        choice: Choice,
        resources: Resources,
        earlier: list[Path] | None = None,
    ) -> None:
        """Run an analysis of the tables, print its short table and write its files."""
        from llm_influence.analysis.tables import InfluenceView

        def view(tables: list[Path]) -> InfluenceView:
            return InfluenceView(
                tables, items=self.items, users=self.users, choice=choice, resources=resources
            )

        with view(self.tables) as now:
            if earlier:
                with view(earlier) as before:
                    analysis = run(now, before)
            else:
                analysis = run(now)
        for line in analysis.shown:
            typer.echo(line)
        files = analysis.write(self.out)
        typer.echo(f"{len(files)} files in {self.out}: {files[-1].name} has everything")


@analyze.command()
@interruptible
@expanded()
def factors(tables: Tables, options: FactorOptions, choice: Choice, resources: Resources) -> None:
    """Rank the properties of events by how far they move influence.

    Writes factors.json, and ranking, effects, interactions and weights as CSV and figures.
    """
    from llm_influence.analysis.factors import analyze_factors

    tables.analyze(lambda view: analyze_factors(view, options), choice, resources)


@analyze.command()
@interruptible
@expanded()
def channels(tables: Tables, options: ChannelOptions, choice: Choice, resources: Resources) -> None:
    """Credit conversions to channels: by the model, attribution rules, Markov chain and Shapley.

    Writes channels.json, and shares, channels and distances as CSV and figures.
    """
    from llm_influence.analysis.channels import analyze_channels

    tables.analyze(lambda view: analyze_channels(view, options), choice, resources)


@analyze.command()
@interruptible
@expanded()
def audit(tables: Tables, options: AuditOptions, choice: Choice, resources: Resources) -> None:
    """Test whether sensitive features of users decide what they get.

    Reads fairness_test.parquet beside the tables too, if `llm-influence fairness-test` wrote it.
    Writes audit.json, and verdict, differences and proxies as CSV and figures.
    """
    from llm_influence.analysis.audit import analyze_audit

    tables.analyze(lambda view: analyze_audit(view, options), choice, resources)


@analyze.command()
@interruptible
@expanded()
def dynamics(
    tables: Tables,
    options: DynamicsOptions,
    choice: Choice,
    resources: Resources,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Tables of an earlier model or period, to compare with. Repeatable."),
    ] = None,
) -> None:
    """Measure how influence fades with age, when it changed, and what moved between two tables.

    Writes dynamics.json, and half-lives, decay, drift, changes and moves as CSV and figures.
    """
    from llm_influence.analysis.dynamics import analyze_dynamics

    tables.analyze(
        lambda view, *earlier: analyze_dynamics(view, options, *earlier), choice, resources, against
    )


def fairness_test(
    model: ModelFolder,
    out: Annotated[
        Path, typer.Option(help="Folder for fairness_test.parquet.", show_default=False)
    ],
    feature: Annotated[
        list[str],
        typer.Option(help="Feature of users, as gender. Repeatable.", show_default=False),
    ],
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    k: Annotated[int, typer.Option(help="Number of recommendations compared.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Histories in one batch.")] = 64,
) -> None:
    """Change one feature of every user and nothing else: does the recommendation change?"""
    from llm_influence.batch.studies import run_fairness_test
    from llm_influence.run import Run

    run = Run.open(model)
    result = run_fairness_test(
        run.model,
        run.open_log(log, items=items, users=users),
        [name.removeprefix("user:") for name in feature],
        out,
        k=k,
        batch_size=batch_size,
        run=model.name,
    )
    for name, share in result.changed.items():
        typer.echo(
            f"{name}: the first recommendation of {share:.1%} of {result.users[name]:,} users "
            "changes with another value"
        )
    typer.echo(f"fairness test: {result.path}")


def review(
    tables: Annotated[
        list[Path],
        typer.Option(help="Folder that `explain` wrote. Repeatable.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The CSV file of the queue.", show_default=False)],
    size: Annotated[int, typer.Option(help="Number of explanations without a decision.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    method: Annotated[
        str | None, typer.Option(help="Use explanations of this method only.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Use this kind of target only.")] = None,
) -> None:
    """Draw risky explanations into a CSV file where people write accept or reject.

    Run it again to draw more; decisions are kept. `report --review` leaves rejected ones out.
    """
    from llm_influence.analysis.review import update_queue
    from llm_influence.analysis.tables import InfluenceView

    with InfluenceView(tables, choice=Choice(method, target)) as view:
        queue = update_queue(view, out, size=size, seed=seed)
    typer.echo(
        f"{queue.waiting} wait, {queue.decided('accept')} accepted, "
        f"{queue.decided('reject')} rejected: {out}"
    )


@dataclass(frozen=True)
class Comparison:
    """How methods are compared."""

    removal: Annotated[str, typer.Option(help="drop, mask or replace, for all methods.")] = "drop"
    check_removal: Annotated[
        str | None, typer.Option(help="A second removal, under which all is measured again.")
    ] = None
    target: Annotated[
        str, typer.Option(help="top1, item:ID, behavior:NAME, contrast:ID,ID or feedback:ID.")
    ] = "top1"
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics, separated by commas. Default: all but the exact ones."),
    ] = None
    events: Annotated[
        int | None, typer.Option(min=1, help="Most recent events kept of a history. Default: all.")
    ] = None
    masks: Annotated[int, typer.Option(help="Held-out random sets of events for a user.")] = 64
    exact_events: Annotated[
        int, typer.Option(help="Longest history that the exact metrics measure.")
    ] = 10
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0

    def options(self) -> FaithfulnessOptions:
        """The options of the library."""
        from llm_influence.attribution.target import parse_target
        from llm_influence.faithfulness.evaluate import FaithfulnessOptions

        return FaithfulnessOptions(
            removal=self.removal,
            check_removal=self.check_removal,
            target=parse_target(self.target),
            metrics=None if self.metrics is None else tuple(_names(self.metrics)),
            last=self.events,
            masks=self.masks,
            exact_events=self.exact_events,
            seed=self.seed,
        )


@expanded()
def faithfulness(
    model: ModelFolder,
    out: Annotated[
        Path, typer.Option(help="Folder for shards, tables and plot.", show_default=False)
    ],
    methods: Annotated[
        str,
        typer.Option(help="Methods, separated by commas; baselines are added.", show_default=False),
    ],
    comparison: Comparison,
    users: Annotated[int, typer.Option(min=1, help="Users drawn from the test split.")] = 100,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of a method, as integrated_gradients.steps=64. Repeatable."),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Users in one shard.")] = 8,
) -> None:
    """Compare attribution methods by faithfulness. Run it again to continue.

    Writes faithfulness.json, .csv, .md and curves.png.
    """
    from llm_influence.batch.studies import measure_faithfulness
    from llm_influence.faithfulness.evaluate import compared_method
    from llm_influence.faithfulness.result import misleading_lines
    from llm_influence.run import Run

    names = _names(methods)
    own = options_by_method(option or [], names)
    options = comparison.options()
    compared = [compared_method(name, own[name]) for name in names]
    run = Run.open(model)
    result = measure_faithfulness(
        run.model,
        run.test_histories(users, seed=comparison.seed),
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
