"""`llm-influence evaluate`, `explain`, `explain-training`, `report`, `methods`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_influence.cli.options import (
    AsJson,
    ItemsFile,
    LogSource,
    ModelFolder,
    RulesFile,
    UsersFile,
    expanded,
    method_options,
)
from llm_influence.errors import ConfigError

if TYPE_CHECKING:
    from llm_influence.attribution.explainer import Explainer
    from llm_influence.modeling.model import InfluenceModel

WHOM, METHOD, CARD, OUTPUT = (
    "What is explained",
    "Method",
    "Quality card",
    "Output",
)


@dataclass(frozen=True)
class Examples:
    """What is explained, of whom."""

    log: LogSource = None
    items: ItemsFile = None
    users: UsersFile = None
    target: Annotated[
        str,
        typer.Option(
            rich_help_panel=WHOM,
            help="top1, item:ID, behavior:NAME, contrast:ID,ID, slate:K, feedback:ID, "
            "feedback:ID,BEHAVIOR, or drawn:DRAWS,ITEMS: items drawn with no look at the history. "
            "With --examples also item, behavior or feedback: what truly came next.",
        ),
    ] = "top1"
    examples: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=WHOM,
            help="test or validation: explain the examples of the run's own split. Default: "
            "explain the next event of every user of the log.",
        ),
    ] = None
    label: Annotated[
        float | None,
        typer.Option(rich_help_panel=WHOM, help="Explain only examples with this label."),
    ] = None
    sample: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=WHOM, help="Draw this many users or examples."),
    ] = None
    query_time: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=WHOM,
            help="ISO time of the prediction for all users; only for models with model.when.",
        ),
    ] = None


@dataclass(frozen=True)
class MethodChoice:
    """The attribution method and its quality card."""

    method: Annotated[
        str, typer.Option(rich_help_panel=METHOD, help="Name; see `llm-influence methods`.")
    ] = "group_shapley"
    removal: Annotated[
        str | None, typer.Option(rich_help_panel=METHOD, help="drop, mask or replace.")
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=METHOD, help="Option of the method, as steps=64. Repeatable."),
    ] = None
    players: Annotated[
        str,
        typer.Option(
            rich_help_panel=METHOD, help="events, or fields: a score for each field of an event."
        ),
    ] = "events"
    seed: Annotated[int, typer.Option(rich_help_panel=METHOD, help="Seed of random draws.")] = 0
    dtype: Annotated[
        str,
        typer.Option(
            rich_help_panel=METHOD, help="float32, or bfloat16: faster; its error is on the card."
        ),
    ] = "float32"
    batch_size: Annotated[
        int, typer.Option(rich_help_panel=METHOD, help="Histories in one batch.")
    ] = 32
    fidelity_masks: Annotated[
        int,
        typer.Option(
            rich_help_panel=CARD, help="Random sets of events that test the scores. 0: none."
        ),
    ] = 16
    agree_with: Annotated[
        str | None,
        typer.Option(rich_help_panel=CARD, help="Second method whose scores are compared."),
    ] = None

    def explainer(self, model: InfluenceModel) -> Explainer:
        """The explainer of these options.

        Raises:
            ExplanationError: An unknown method, option or removal.
        """
        from llm_influence.attribution.explainer import Explainer
        from llm_influence.attribution.renderings import Players

        return Explainer(
            model,
            self.method,
            removal=self.removal,
            seed=self.seed,
            batch_size=self.batch_size,
            fidelity_masks=self.fidelity_masks,
            agree_with=self.agree_with,
            players=Players.parse(self.players),
            dtype=self.dtype,
            **method_options(self.option or []),
        )


ReviewFile = Annotated[
    Path | None,
    typer.Option(help="CSV of `review`: explanations that a person rejected are left out."),
]


def evaluate(model: ModelFolder, rules: RulesFile = None, json_: AsJson = False) -> None:
    """Measure every head of a run on its test split, beside baselines."""
    from llm_influence.evaluation.evaluate import as_text, compare_heads, verdict
    from llm_influence.run import Run

    run = Run.open(model, rules=rules)
    by_head = compare_heads(run.model, run.split, run.config.evaluation)
    if json_:
        typer.echo(json.dumps(by_head, indent=2))
        return
    for head, records in by_head.items():
        typer.echo(f"{head}\n{as_text(records)}" if len(by_head) > 1 else as_text(records))
        ahead = verdict(records, run.config.evaluation.cutoff) if head == "items" else ""
        if ahead:
            typer.echo(ahead)


@expanded()
def explain(
    chosen: Examples,
    method: MethodChoice,
    model: ModelFolder,
    out: Annotated[
        Path,
        typer.Option(
            rich_help_panel=OUTPUT, help="Folder for the influence table.", show_default=False
        ),
    ],
    shard_size: Annotated[
        int, typer.Option(rich_help_panel=OUTPUT, help="Users in one Parquet file.")
    ] = 128,
    card_sample: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=CARD,
            help="Measure fidelity for one in so many users, at least 200. 1: all.",
        ),
    ] = 50,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            rich_help_panel=OUTPUT,
            help="Stop at the first user that cannot be explained. Default: list such users in "
            "errors.parquet.",
        ),
    ] = False,
    review: ReviewFile = None,
    rules: RulesFile = None,
    json_: AsJson = False,
) -> None:
    """Explain every user of a log into Parquet files. Run it again to continue."""
    from accelerate import PartialState

    from llm_influence.analysis.review import read_queue, rejected
    from llm_influence.batch.explain import explain_batch
    from llm_influence.data.times import parse_moment
    from llm_influence.run import Run

    _check(chosen)
    run = Run.open(model, rules=rules)
    sample, seed = chosen.sample, method.seed
    result = explain_batch(
        method.explainer(run.model),
        run.open_log(chosen.log, items=chosen.items, users=chosen.users, sample=sample, seed=seed)
        if chosen.examples is None
        else run.examples(chosen.examples, chosen.label, sample=sample, seed=seed),
        out,
        target=chosen.target,
        shard_size=shard_size,
        run=model.name,
        query_time=parse_moment(chosen.query_time, "--query-time") if chosen.query_time else None,
        withheld=frozenset() if review is None else rejected(read_queue(review)),
        card_sample=card_sample,
        strict=strict,
    )
    summary = {
        "explained": result.users,
        "failed": result.failed,
        "rows": result.rows,
        "folder": str(result.folder),
        "explained_now": result.explained_now,
        "per_second": result.explained_now / result.seconds,
    }
    if PartialState().is_main_process:
        typer.echo(json.dumps(summary) if json_ else _line(summary, chosen.examples is None))


def explain_training(
    model: ModelFolder,
    user: Annotated[
        list[str] | None, typer.Option(help="Id of a user to explain. Repeatable.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="top1, item:ID, behavior:NAME, contrast:ID,ID or feedback:ID.")
    ] = "top1",
    k: Annotated[int, typer.Option(min=1, help="Training users named for each prediction.")] = 3,
) -> None:
    """Name the training users that most support a prediction.

    The first call computes their gradients and stores them in the run folder.
    """
    from llm_influence.attribution.target import parse_target
    from llm_influence.attribution.training_influence import FILE, stored_gradients
    from llm_influence.attribution.training_influence import training_influence as influence_of
    from llm_influence.run import Run

    run = Run.open(model)
    log = run.split.train
    gradients = stored_gradients(run.model, log, model / FILE, progress=True)
    typer.echo(f"gradients of {len(log)} users: {model / FILE}")
    for name in user or ():
        history = run.split.log[name]
        result = influence_of(
            run.model, history, parse_target(target), log=log, gradients=gradients
        )
        typer.echo(f"{name}: {result.to_text(k)}")


def report(
    model: ModelFolder,
    influence: Annotated[
        list[Path],
        typer.Option(
            help="Folder that `explain` wrote. Repeat it for more methods.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    shown: Annotated[int, typer.Option(help="Number of users shown one by one.")] = 12,
    review: ReviewFile = None,
    analysis: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that `analyze` wrote, shown on the page. Repeatable."),
    ] = None,
    rules: RulesFile = None,
) -> None:
    """Write one self-contained HTML page about explanations and their analyses."""
    from llm_influence.analysis.review import read_queue, withhold
    from llm_influence.evaluation.evaluate import compare_heads
    from llm_influence.influence.batch_state import cards_of, check_model, notes_on
    from llm_influence.influence.table_files import read_tables
    from llm_influence.modeling.fingerprints import model_fingerprint
    from llm_influence.report.page import build_report
    from llm_influence.run import Run

    run = Run.open(model, rules=rules)
    check_model([*influence, *(analysis or ())], model_fingerprint(run.model))
    table = read_tables(influence)
    if review is not None:
        table = withhold(table, read_queue(review))
    behavior_log = run.open_log(log, items=items, users=users)
    metrics = compare_heads(run.model, run.split, run.config.evaluation)
    facts = run.report_facts(table, metrics, log=behavior_log, users=shown)
    notes, cards = notes_on(influence), cards_of(influence)
    for note in notes:
        typer.echo(f"warning: {note}", err=True)
    unfinished = {"Incomplete": "; ".join(notes)} if notes else {}
    quality = {f"Quality of {name}": text for name, text in cards.items()}
    facts = replace(facts, protocol={**unfinished, **facts.protocol, **quality})
    page = build_report(
        influences=table, facts=facts, out=out, users=shown, analyses=analysis or ()
    )
    typer.echo(f"report: {page}")


def methods(json_: AsJson = False) -> None:
    """List the attribution methods: what each estimates, what it costs, when not to trust it."""
    from llm_influence.attribution.methods import METHODS

    records = [
        {
            "method": spec.name,
            "family": spec.family,
            "estimates": spec.estimates,
            "units": spec.units,
            "removal": ", ".join(spec.removals) or "none",
            "cost": spec.cost,
            "players": ", ".join(spec.players),
            "options": ", ".join(f"{k}={v}" for k, v in spec.defaults().items()) or "none",
            "paper": spec.paper or "none",
            "caution": spec.caution,
        }
        for spec in METHODS.values()
    ]
    if json_:
        typer.echo(json.dumps(records, indent=2))
        return
    for record in records:
        typer.echo(record.pop("method"))
        for name, text in record.items():
            typer.echo(f"    {name:10} {text}")


def _check(chosen: Examples) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: Names the option to leave out.
    """
    if chosen.examples is None:
        if chosen.label is not None:
            raise ConfigError(
                f"--label {chosen.label}",
                where="explain",
                expected="--examples beside it",
                fix="add --examples test, or leave --label out",
            )
        return
    if chosen.query_time is not None:
        raise ConfigError(
            f"--query-time {chosen.query_time}",
            where="explain",
            expected="whole histories: each example has its own query time",
            fix="leave --query-time or --examples out",
        )
    if chosen.log or chosen.items or chosen.users:
        raise ConfigError(
            "both --examples and another log",
            where="explain",
            expected="--examples alone: they belong to the split that the run was measured on",
            fix="leave out --log, --items and --users, or --examples",
        )


def _line(summary: dict[str, object], users: bool) -> str:
    failed = f"{summary['failed']} failed, see errors.parquet; " if summary["failed"] else ""
    return (
        f"{summary['explained']} {'users' if users else 'examples'}, {summary['rows']} rows in "
        f"{summary['folder']}; {failed}{summary['explained_now']} explained now, "
        f"{summary['per_second']:.1f} a second"
    )
