"""`llm-influence demo`, `finetune`, `search`, `update`, `evaluate`, `tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import ConfigFile, ItemsFile, ModelFolder, RulesFile, UsersFile


def demo(
    context: typer.Context,
    users: Annotated[int, typer.Option(help="users explained in the report")] = 24,
) -> None:
    """Fine-tune on MovieLens-100K, evaluate, explain, and write the report."""
    from llm_influence.cli.demo_run import demo_config, run_demo

    run_demo(demo_config(context.args), users=users, say=typer.echo)


def finetune(
    context: typer.Context,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint")] = False,
    skip_test: Annotated[
        bool, typer.Option("--skip-test", help="leave the test split unread")
    ] = False,
) -> None:
    """Fine-tune a model; any option of the configuration may follow as --section.option value."""
    from llm_influence.config.run import RunConfig
    from llm_influence.training.finetune import finetune as run

    result = run(RunConfig.load(config, context.args), resume=resume, measure_test=not skip_test)
    typer.echo(f"validation {result.validation}")
    typer.echo(f"test       {'not measured' if result.test is None else result.test}")
    typer.echo(f"model folder: {result.folder}")


def search(
    context: typer.Context,
    space: Annotated[Path, typer.Argument(help="YAML file of a SearchConfig")],
) -> None:
    """Search for good options on validation; killed and started again, it goes on.

    Any option of the search may follow: --trials 50 --seconds 3600. Needs the extra `search`.
    """
    from llm_influence.config.run import SearchConfig
    from llm_influence.training.sweep import search as run

    config = SearchConfig.load(space, context.args)
    typer.echo(run(config, say=typer.echo).to_text())
    typer.echo(f"best run: llm-influence finetune --config {Path(config.output) / 'best.yaml'}")


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
    from llm_influence.training.continual import open_newer, update_config
    from llm_influence.training.continual import update as run

    config = update_config(model, out, log=log, items=items, users=users, overrides=context.args)
    result = run(model, config, None if log is None else open_newer(config), resume=resume)
    typer.echo(result.to_text())
    typer.echo(f"model folder: {result.folder}")


def evaluate(model: ModelFolder, rules: RulesFile = None) -> None:
    """Measure every head of a run on its own test split beside item-kNN, popularity and means."""
    from llm_influence.evaluation.evaluate import as_text, compare_heads
    from llm_influence.run import Run

    run = Run.open(model, rules=rules)
    found = compare_heads(run.model, run.split, run.config.evaluation)
    for head, records in found.items():
        typer.echo(f"{head}\n{as_text(records)}" if len(found) > 1 else as_text(records))


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
    from llm_influence.config.model import ScratchConfig
    from llm_influence.config.run import RunConfig
    from llm_influence.data.splits import split_log
    from llm_influence.datasets.sources import open_data
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
