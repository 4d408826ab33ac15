"""The command line: thin, it calls the same functions as `scripts/` and the Python API.

llm-influence demo | finetune | search | update | evaluate | explain | faithfulness | analyze |
flips | review | report | methods | planted | planted-fraud | tokenizer
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from llm_influence.cli_analyze import analyze
from llm_influence.cli_audit import flips, review
from llm_influence.errors import ConfigError, InfluenceError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which of the things a user did made the model predict what they do next, and how much?",
)
app.add_typer(analyze, name="analyze")
app.command()(flips)
app.command()(review)

Overrides = {"allow_extra_args": True, "ignore_unknown_options": True}
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file of the run; default: the demo's")]
ModelFolder = Annotated[Path, typer.Option("--model", help="folder that `finetune` wrote")]
LogSource = Annotated[
    str | None,
    typer.Option("--log", help="behaviour log, a file or public name; default: the run's own"),
]
ItemsFile = Annotated[str | None, typer.Option(help="item table that goes with --log")]
RulesFile = Annotated[Path | None, typer.Option(help="YAML file of rules; default: the run's own")]
UsersFile = Annotated[str | None, typer.Option(help="user table that goes with --log")]


@app.command(context_settings=Overrides)
def demo(
    context: typer.Context,
    users: Annotated[int, typer.Option(help="users explained in the report")] = 24,
) -> None:
    """Fine-tune on MovieLens-100K, evaluate, explain, and write the report."""
    from llm_influence.demo import demo_config, run_demo

    run_demo(demo_config(context.args), users=users, say=typer.echo)


@app.command(context_settings=Overrides)
def finetune(
    context: typer.Context,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint")] = False,
    skip_test: Annotated[
        bool, typer.Option("--skip-test", help="leave the test split unread")
    ] = False,
) -> None:
    """Fine-tune a model; any option of the configuration may follow as --section.option value."""
    from llm_influence.config import RunConfig
    from llm_influence.training.finetune import finetune as run

    result = run(RunConfig.load(config, context.args), resume=resume, measure_test=not skip_test)
    typer.echo(f"validation {result.validation}")
    typer.echo(f"test       {'not measured' if result.test is None else result.test}")
    typer.echo(f"model folder: {result.folder}")


@app.command(context_settings=Overrides)
def search(
    context: typer.Context,
    space: Annotated[Path, typer.Argument(help="YAML file of a SearchConfig")],
) -> None:
    """Search for good options on validation; killed and started again, it goes on.

    Any option of the search may follow: --trials 50 --seconds 3600. Needs the extra `search`.
    """
    from llm_influence.config import SearchConfig
    from llm_influence.training.search.study import search as run

    config = SearchConfig.load(space, context.args)
    typer.echo(run(config, say=typer.echo).to_text())
    typer.echo(f"best run: llm-influence finetune --config {Path(config.output) / 'best.yaml'}")


@app.command(context_settings=Overrides)
def update(
    context: typer.Context,
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="the new run folder")],
    log: Annotated[
        str | None,
        typer.Option(help="newer log; default: the run's own, cut by --update.since"),
    ] = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint")] = False,
) -> None:
    """Train a finished run on with the newest events and replayed old ones.

    Options of the configuration may follow: --update.replay 0.5 --train.epochs 2.
    """
    from llm_influence.training.update import open_newer, update_config
    from llm_influence.training.update import update as run

    config = update_config(model, out, log=log, items=items, users=users, overrides=context.args)
    result = run(model, config, None if log is None else open_newer(config), resume=resume)
    typer.echo(result.to_text())
    typer.echo(f"model folder: {result.folder}")


@app.command()
def evaluate(model: ModelFolder, rules: RulesFile = None) -> None:
    """Measure every head of a run on its own test split beside item-kNN, popularity and means."""
    from llm_influence.evaluation.comparison import as_text, compare_heads
    from llm_influence.run import Run

    run = Run.open(model, rules=rules)
    found = compare_heads(run.model, run.split, run.config.evaluation)
    for head, records in found.items():
        typer.echo(f"{head}\n{as_text(records)}" if len(found) > 1 else as_text(records))


@app.command()
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
            "feedback:ID or feedback:ID,BEHAVIOR; with --questions also item, behavior or "
            "feedback: of what came"
        ),
    ] = "top1",
    questions: Annotated[
        str | None,
        typer.Option(
            help="test or validation: explain the questions of the run's split, what came beside "
            "them; default: what every user of the log does next"
        ),
    ] = None,
    label: Annotated[float | None, typer.Option(help="only questions with this label")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="so many users or questions, drawn by --seed")
    ] = None,
    asked_at: Annotated[
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
    from llm_influence.attribution.players import Players
    from llm_influence.data.splits import parse_moment
    from llm_influence.jobs.batch import explain_batch
    from llm_influence.jobs.questions import explain_questions
    from llm_influence.run import Run, sample_questions, sample_users

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
        **_method_options(option or []),
    )
    if questions is None:
        _refuse("--label", label, needs="--questions")
        behavior_log = run.open_log(log, items=items, users=users)
        result = explain_batch(
            explainer,
            behavior_log if sample is None else sample_users(behavior_log, sample, seed),
            out,
            target=target,
            shard_size=shard_size,
            run=model.name,
            asked_at=None if asked_at is None else parse_moment(asked_at, "--asked-at"),
            withheld=withheld,
        )
    else:
        _refuse("--asked-at", asked_at, needs="whole histories: a question has its own moment")
        rows = run.questions(_of_own_split(questions, log, items, users), label)
        result = explain_questions(
            explainer,
            rows if sample is None else sample_questions(rows, sample, seed),
            out,
            target=target,
            shard_size=shard_size,
            run=model.name,
            withheld=withheld,
        )
    rate = result.explained_now / result.seconds
    typer.echo(
        f"{result.users} {'users' if questions is None else 'questions'}, {result.rows} rows in "
        f"{result.folder}; "
        f"{result.explained_now} explained now, {rate:.1f} a second"
    )


@app.command()
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
    from llm_influence.attribution.targets import parse_target
    from llm_influence.faithfulness.contenders import contender
    from llm_influence.faithfulness.options import Options
    from llm_influence.faithfulness.table import misleading_lines
    from llm_influence.jobs.faithfulness import measure_faithfulness
    from llm_influence.run import Run

    names = _names(methods)
    own = _options_by_method(option or [], names)
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
    contenders = [contender(name, own[name]) for name in names]
    run = Run.open(model)
    result = measure_faithfulness(
        run.model,
        run.test_histories(users, seed=seed),
        contenders,
        out,
        options,
        shard_size=shard_size,
    )
    for line in misleading_lines(result):
        typer.echo(line)
    typer.echo(f"{out}: faithfulness.json, faithfulness.csv, faithfulness.md, curves.png")


@app.command()
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
    from llm_influence.evaluation.comparison import compare_heads
    from llm_influence.influence.table import read_tables
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


@app.command()
def methods() -> None:
    """List the attribution methods: what each estimates, what it costs, when not to trust it."""
    from llm_influence.attribution.explainer import METHODS

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


@app.command(context_settings=Overrides)
def planted(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for the log, its truth and its law")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a PlantedConfig")] = None,
) -> None:
    """Make a log by a known law, with the true influence of every event beside it.

    Any option of PlantedConfig may follow: --users 500 --half_life 3600 --seed 1.
    """
    from llm_influence.config import PlantedConfig
    from llm_influence.data.planted import write_planted

    log, truth = write_planted(PlantedConfig.load(config, context.args), out)
    causes = sum(int(row.sum()) for row in truth.is_cause)
    explained = sum(len(row) for row in truth.is_cause)
    typer.echo(
        f"{len(log):,} users, {log.num_events:,} events, {len(log.catalogue)} items in {out}"
    )
    typer.echo(f"{causes:,} of {explained:,} explained events are causes")


@app.command("planted-fraud", context_settings=Overrides)
def planted_fraud(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for the log, its truth and its law")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a PlantedFraudConfig")] = None,
) -> None:
    """Make up bank accounts, some taken over, with the events that raised each alarm beside them.

    Any option of PlantedFraudConfig may follow: --accounts 500 --fraud_share 0.1 --seed 1.
    """
    from llm_influence.config import PlantedFraudConfig
    from llm_influence.data.planted_fraud import write_planted_fraud

    log, truth = write_planted_fraud(PlantedFraudConfig.load(config, context.args), out)
    typer.echo(f"{len(log):,} generated accounts, {log.num_events:,} events in {out}")
    typer.echo(f"{truth.is_fraud.sum():,} of {len(truth.alarms):,} alarms are fraud")


@app.command(context_settings=Overrides)
def tokenizer(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for tokenizer and decoder; must be new")],
    config: ConfigFile = None,
    vocab_size: Annotated[int, typer.Option(min=300, help="pieces, 256 bytes included")] = 4000,
    layers: Annotated[int, typer.Option(min=1, help="of the decoder")] = 4,
    width: Annotated[int, typer.Option(min=8, help="of its states")] = 256,
    heads: Annotated[int, typer.Option(min=1, help="of its attention")] = 4,
    length: Annotated[int, typer.Option("--context", min=16, help="most tokens it reads")] = 1024,
    seed: Annotated[int, typer.Option(help="of sampled lines and first weights")] = 0,
) -> None:
    """Train a SentencePiece tokenizer on the run's rendered log, with a small random decoder."""
    from llm_influence.config import RunConfig, ScratchConfig
    from llm_influence.data.sources import open_data
    from llm_influence.data.splits import split_log
    from llm_influence.modeling.scratch import make_backbone
    from llm_influence.rendering.template import Template

    run = RunConfig.load(config, context.args)
    sizes = ScratchConfig(
        vocab_size=vocab_size, layers=layers, width=width, heads=heads, context=length, seed=seed
    )
    log = split_log(open_data(run.data), run.data.split).train
    made = make_backbone(log, Template.load(run.rendering.template), sizes, out)
    typer.echo(f"{made.vocabulary} pieces from {made.lines:,} lines; {made.parameters:,} weights")
    typer.echo(f"model.backbone: {made.folder}   its weights are random: train all of them")


def _method_options(words: list[str]) -> dict[str, object]:
    options: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read {word!r}",
                where="--option",
                expected="name=value",
                fix="write it as --option steps=64",
            )
        options[name] = yaml.safe_load(text)
    return options


def _refuse(option: str, value: object, *, needs: str) -> None:
    if value is not None:
        raise ConfigError(
            f"{option} {value}", where="explain", expected=needs, fix=f"leave {option} out"
        )


def _of_own_split(questions: str, *others: str | None) -> str:
    """Questions are those of the run's own log."""
    if any(others):
        raise ConfigError(
            "both --questions and another log",
            where="explain",
            expected="--questions alone: they are of the split that the run was measured on",
            fix="leave out --log, --items and --users, or --questions",
        )
    return questions


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _options_by_method(words: list[str], methods: list[str]) -> dict[str, dict[str, object]]:
    """Options written as ``method.name=value``, by method."""
    found: dict[str, dict[str, object]] = {method: {} for method in methods}
    for key, value in _method_options(words).items():
        method, dot, name = key.partition(".")
        if not dot or method not in found:
            raise ConfigError(
                f"cannot read {key!r}",
                where="--option",
                expected="method.name=value with a method of --methods",
                fix=f"write it as --option {methods[0] if methods else 'method'}.steps=64",
            )
        found[method][name] = value
    return found


def main() -> None:
    """Entry point: a user's error is one plain message and exit status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except InfluenceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
