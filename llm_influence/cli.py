"""The command line: thin, it calls the same functions as `scripts/` and the Python API.

llm-influence demo | finetune | evaluate | explain | report | methods | planted | tokenizer
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from llm_influence.errors import ConfigError, InfluenceError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which of the things a user did made the model predict what they do next, and how much?",
)

Overrides = {"allow_extra_args": True, "ignore_unknown_options": True}
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file of the run; default: the demo's")]
ModelFolder = Annotated[Path, typer.Option("--model", help="folder that `finetune` wrote")]
LogSource = Annotated[
    str | None,
    typer.Option("--log", help="behaviour log, a file or public name; default: the run's own"),
]
ItemsFile = Annotated[str | None, typer.Option(help="item table that goes with --log")]
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
) -> None:
    """Fine-tune a model; any option of the configuration may follow as --section.option value."""
    from llm_influence.config import RunConfig
    from llm_influence.training.finetune import finetune as run

    result = run(RunConfig.load(config, context.args), resume=resume)
    typer.echo(f"validation {result.validation}")
    typer.echo(f"test       {result.test}")
    typer.echo(f"model folder: {result.folder}")


@app.command()
def evaluate(model: ModelFolder) -> None:
    """Measure a run on its own test split beside item-kNN and popularity."""
    from llm_influence.evaluation.comparison import as_text, compare
    from llm_influence.run import Run

    run = Run.open(model)
    typer.echo(as_text(compare(run.model, run.split, run.config.evaluation)))


@app.command()
def explain(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="folder for the Parquet shards")],
    log: LogSource = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    method: Annotated[str, typer.Option(help="see `llm-influence methods`")] = "leave_one_out",
    target: Annotated[
        str, typer.Option(help="top1, item:ID, behavior:NAME, contrast:ID,ID or slate:K")
    ] = "top1",
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
    shard_size: Annotated[int, typer.Option(help="users a shard")] = 128,
) -> None:
    """Explain every user of a log into Parquet; killed and started again, it goes on."""
    from llm_influence.attribution.explainer import Explainer
    from llm_influence.attribution.players import Players
    from llm_influence.jobs.batch import explain_batch
    from llm_influence.run import Run

    run = Run.open(model)
    explainer = Explainer(
        run.model,
        method,
        removal=removal,
        seed=seed,
        batch_size=batch_size,
        fidelity_masks=fidelity_masks,
        agree_with=agree_with,
        players=Players.parse(players),
        **_method_options(option or []),
    )
    behavior_log = run.open_log(log, items=items, users=users)
    result = explain_batch(
        explainer, behavior_log, out, target=target, shard_size=shard_size, run=model.name
    )
    rate = result.explained_now / result.seconds
    typer.echo(
        f"{result.users} users, {result.rows} rows in {result.folder}; "
        f"{result.explained_now} explained now, {rate:.1f} a second"
    )


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
) -> None:
    """Write one self-contained HTML page about explanations."""
    from llm_influence.evaluation.comparison import compare
    from llm_influence.influence.table import read_tables
    from llm_influence.report.page import build_report
    from llm_influence.run import Run

    run, table = Run.open(model), read_tables(influence)
    behavior_log = run.open_log(log, items=items, users=users)
    ids = table["user_id"].unique().to_pylist()[:shown]
    facts = run.report_facts(
        compare(run.model, run.split, run.config.evaluation),
        [behavior_log.history(user) for user in ids],
    )
    typer.echo(f"report: {build_report(influences=table, facts=facts, out=out, users=shown)}")


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
