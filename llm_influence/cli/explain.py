"""`llm-influence explain`, `report`, `methods`: influence of events, and the page about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import (
    ItemsFile,
    LogSource,
    ModelFolder,
    RulesFile,
    UsersFile,
    method_options,
)
from llm_influence.errors import ConfigError


def explain(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="folder for the Parquet shards")],
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    method: Annotated[str, typer.Option(help="see `llm-influence methods`")] = "leave_one_out",
    target: Annotated[
        str,
        typer.Option(
            help="top1, item:ID, behavior:NAME, contrast:ID,ID, slate:K, "
            "feedback:ID or feedback:ID,BEHAVIOR; with --examples also item, behavior or "
            "feedback: of what came"
        ),
    ] = "top1",
    examples: Annotated[
        str | None,
        typer.Option(
            help="test or validation: explain the examples of the run's split, what came beside "
            "them; default: what every user of the log does next"
        ),
    ] = None,
    label: Annotated[float | None, typer.Option(help="only examples with this label")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="so many users or examples, drawn by --seed")
    ] = None,
    query_time: Annotated[
        str | None,
        typer.Option(help='ISO time at which all users are asked, for models with "when"'),
    ] = None,
    removal: Annotated[str | None, typer.Option(help="drop, mask or replace")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="a method's own option, as steps=64; repeatable")
    ] = None,
    seed: Annotated[int, typer.Option(help="of random draws")] = 0,
    batch_size: Annotated[int, typer.Option(help="histories at a time")] = 32,
    fidelity_masks: Annotated[
        int, typer.Option(help="random sets of events that scores are tried on; 0: none")
    ] = 16,
    agree_with: Annotated[
        str | None, typer.Option(help="another method to compare the scores with")
    ] = None,
    players: Annotated[
        str, typer.Option(help="events; fields: the parts of each event, a score each")
    ] = "events",
    dtype: Annotated[
        str, typer.Option(help="float32; bfloat16: faster, its error measured on the card")
    ] = "float32",
    shard_size: Annotated[int, typer.Option(help="users a shard")] = 128,
    review: Annotated[
        Path | None, typer.Option(help="queue of `review`: what was rejected is not written")
    ] = None,
    rules: RulesFile = None,
) -> None:
    """Explain every user of a log into Parquet; killed and started again, it goes on."""
    from llm_influence.analysis.review import read_queue, rejected
    from llm_influence.attribution.explainer import Explainer
    from llm_influence.attribution.renderings import Players
    from llm_influence.batch.explain import explain_batch, explain_examples
    from llm_influence.data.splits import parse_moment
    from llm_influence.run import Run, sample_examples, sample_users

    withheld = frozenset() if review is None else rejected(read_queue(review))
    run = Run.open(model, rules=rules)
    explainer = Explainer(
        run.model,
        method,
        removal=removal,
        seed=seed,
        batch_size=batch_size,
        fidelity_masks=fidelity_masks,
        agree_with=agree_with,
        players=Players.parse(players),
        dtype=dtype,
        **method_options(option or []),
    )
    if examples is None:
        _refuse("--label", label, needs="--examples")
        behavior_log = run.open_log(log, items=items, users=users)
        result = explain_batch(
            explainer,
            behavior_log if sample is None else sample_users(behavior_log, sample, seed),
            out,
            target=target,
            shard_size=shard_size,
            run=model.name,
            query_time=None if query_time is None else parse_moment(query_time, "--query-time"),
            withheld=withheld,
        )
    else:
        _refuse("--query-time", query_time, needs="whole histories: a question has its own moment")
        rows = run.examples(_of_own_split(examples, log, items, users), label)
        result = explain_examples(
            explainer,
            rows if sample is None else sample_examples(rows, sample, seed),
            out,
            target=target,
            shard_size=shard_size,
            run=model.name,
            withheld=withheld,
        )
    rate = result.explained_now / result.seconds
    typer.echo(
        f"{result.users} {'users' if examples is None else 'examples'}, {result.rows} rows in "
        f"{result.folder}; "
        f"{result.explained_now} explained now, {rate:.1f} a second"
    )


def report(
    model: ModelFolder,
    influence: Annotated[
        list[Path], typer.Option(help="folder that `explain` wrote; repeat for more methods")
    ],
    out: Annotated[Path, typer.Option(help="the HTML file")] = Path("report.html"),
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    shown: Annotated[int, typer.Option(help="users shown one by one")] = 12,
    review: Annotated[
        Path | None, typer.Option(help="queue of `review`: what was rejected is withheld")
    ] = None,
    analysis: Annotated[
        list[Path] | None,
        typer.Option(help="folder that `analyze ... --out` wrote, for the page; repeatable"),
    ] = None,
    rules: RulesFile = None,
) -> None:
    """Write one self-contained HTML page about explanations, with the analyses of them."""
    from llm_influence.evaluation.evaluate import compare_heads
    from llm_influence.influence.table_files import read_tables
    from llm_influence.report.page import build_report
    from llm_influence.run import Run, heads_as_records, whole_histories

    run, table = Run.open(model, rules=rules), read_tables(influence)
    if review is not None:
        from llm_influence.analysis.review import read_queue, withhold

        table = withhold(table, read_queue(review))
    behavior_log = run.open_log(log, items=items, users=users)
    facts = run.report_facts(
        heads_as_records(compare_heads(run.model, run.split, run.config.evaluation)),
        whole_histories(table, behavior_log, shown),
    )
    page = build_report(
        influences=table, facts=facts, out=out, users=shown, analyses=analysis or ()
    )
    typer.echo(f"report: {page}")


def methods() -> None:
    """List the attribution methods: what each estimates, what it costs, when not to trust it."""
    from llm_influence.attribution.methods import METHODS

    for spec in METHODS.values():
        removals = ", ".join(spec.removals) or "none"
        options = ", ".join(f"{name}={default}" for name, default in spec.options.items())
        typer.echo(f"{spec.name}  ({spec.family}, units: {spec.units}, removal: {removals})")
        typer.echo(f"    estimates  {spec.estimates}")
        typer.echo(f"    cost       {spec.cost}")
        typer.echo(f"    players    {', '.join(spec.players)}")
        typer.echo(f"    options    {options or 'none'}")
        typer.echo(f"    paper      {spec.paper or 'none'}")
        typer.echo(f"    caution    {spec.caution}")


def _refuse(option: str, value: object, *, needs: str) -> None:
    if value is not None:
        raise ConfigError(
            f"{option} {value}", where="explain", expected=needs, fix=f"leave {option} out"
        )


def _of_own_split(examples: str, *others: str | None) -> str:
    """Examples are those of the run's own log."""
    if any(others):
        raise ConfigError(
            "both --examples and another log",
            where="explain",
            expected="--examples alone: they are of the split that the run was measured on",
            fix="leave out --log, --items and --users, or --examples",
        )
    return examples
