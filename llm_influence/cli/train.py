"""Commands that make data and models: `finetune`, `search`, `update`, `ensemble` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_influence.cli.options import (
    ConfigFile,
    ItemsFile,
    ModelFolder,
    Overrides,
    UsersFile,
    expanded,
)
from llm_influence.config.data import PlantedConfig, PlantedFraudConfig
from llm_influence.config.model import ScratchConfig
from llm_influence.config.run import RunConfig, SearchConfig

Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the last checkpoint of this output folder.")
]


def demo(
    context: typer.Context,
    users: Annotated[int, typer.Option(help="Number of users explained in the report.")] = 24,
) -> None:
    """Fine-tune on MovieLens-100K, evaluate, explain, and write the report.

    Run it again to reuse what is finished. The options of `finetune` may follow.
    """
    RunConfig.load(None, context.args)  # before torch: a wrong option fails at once
    from llm_influence.cli.demo_run import demo_config, run_demo

    run_demo(demo_config(context.args), users=users, say=typer.echo)


@expanded(RunConfig)
def finetune(
    context: typer.Context,
    overrides: Overrides,
    config: ConfigFile = None,
    resume: Resume = False,
    skip_test: Annotated[
        bool, typer.Option("--skip-test", help="Do not measure on the test split.")
    ] = False,
) -> None:
    """Fine-tune a model on a behaviour log.

    Write the options into a YAML file, or give them here, as in --train.epochs 4. Options given
    here win. Runs on several processes under torchrun or accelerate launch.
    """
    loaded = RunConfig.load(config, overrides.typed)  # before torch: a wrong option fails at once
    from accelerate import PartialState

    from llm_influence.training.finetune import finetune as run

    result = run(loaded, resume=resume, measure_test=not skip_test)
    if PartialState().is_main_process:
        typer.echo(f"validation {result.validation}")
        typer.echo(f"test       {'not measured' if result.test is None else result.test}")
        typer.echo(f"model folder: {result.folder}")


def search(
    context: typer.Context,
    space: Annotated[Path, typer.Argument(help="YAML file with the search: see configs/search.")],
) -> None:
    """Search for good options on the validation split. Run it again to continue.

    Options of the search may follow, as in --trials 50. Needs the extra `search`.
    """
    config = SearchConfig.load(space, context.args)
    from llm_influence.training.sweep import search as run

    typer.echo(run(config, say=typer.echo).to_text())
    typer.echo(f"best run: llm-influence finetune --config {Path(config.output) / 'best.yaml'}")


def update(
    context: typer.Context,
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Folder of the new run.", show_default=False)],
    log: Annotated[
        str | None,
        typer.Option(help="Newer log. Default: the run's own log, cut by --update.since."),
    ] = None,
    items: ItemsFile = None,
    users: UsersFile = None,
    resume: Resume = False,
) -> None:
    """Continue to fine-tune a finished run on newer events, with replay of old events.

    Options of the configuration may follow, as in --update.replay 0.5.
    """
    from accelerate import PartialState

    from llm_influence.training.continual import open_newer, update_config
    from llm_influence.training.continual import update as run

    config = update_config(model, out, log=log, items=items, users=users, overrides=context.args)
    result = run(model, config, None if log is None else open_newer(config), resume=resume)
    if PartialState().is_main_process:
        typer.echo(result.to_text())
        typer.echo(f"model folder: {result.folder}")


def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs on one split.")],
    out: Annotated[Path, typer.Option(help="Folder of the ensemble.", show_default=False)],
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of a run, once for each. Default: chosen on validation."),
    ] = None,
) -> None:
    """Average finished runs: one folder that every command opens with --model."""
    from llm_influence.modeling.model import Ensemble
    from llm_influence.run import Run

    model = Run.ensemble(runs, out, weights=weight).model
    if isinstance(model, Ensemble):
        origin = "given" if weight else "chosen by the likelihood of the validation items"
        typer.echo(f"weights, {origin}: {', '.join(f'{w:.3f}' for w in model.weights)}")
    typer.echo(f"model folder: {out}")


def tokenizer(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="New folder for tokenizer and decoder.", show_default=False)
    ],
    config: ConfigFile = None,
    vocab_size: Annotated[
        int, typer.Option(min=300, help="Number of tokens, the 256 bytes included.")
    ] = 4000,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the decoder.")] = 4,
    width: Annotated[int, typer.Option(min=8, help="Width of its states.")] = 256,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    length: Annotated[int, typer.Option("--context", min=16, help="Longest input, in tokens.")] = (
        1024
    ),
    seed: Annotated[int, typer.Option(help="Seed of sampled lines and initial weights.")] = 0,
) -> None:
    """Train a SentencePiece tokenizer on the run's rendered log, and make a small decoder for it.

    The decoder's weights are random. Train all of them: --model.adapter.kind full.
    """
    run = RunConfig.load(config, context.args)
    from llm_influence.data.splits import split_log
    from llm_influence.datasets.public import open_data
    from llm_influence.modeling.build import make_backbone
    from llm_influence.rendering.template import Template

    sizes = ScratchConfig(
        vocab_size=vocab_size, layers=layers, width=width, heads=heads, context=length, seed=seed
    )
    log = split_log(open_data(run.data), run.data.split).train
    made = make_backbone(log, Template.load(run.rendering.template), sizes, out)
    typer.echo(f"{made.vocabulary} tokens from {made.lines:,} lines; {made.parameters:,} weights")
    typer.echo(f"model.backbone: {made.folder}   its weights are random: train all of them")


OutFolder = Annotated[
    Path, typer.Option(help="Folder for the log and its true influence.", show_default=False)
]
Settings = Annotated[Path | None, typer.Option("--config", help="YAML file with the options.")]


@expanded(PlantedConfig)
def planted(
    context: typer.Context, overrides: Overrides, out: OutFolder, config: Settings = None
) -> None:
    """Generate a log with the true influence of every event beside it."""
    from llm_influence.datasets.planted import make_planted

    log, truth = make_planted(PlantedConfig.load(config, overrides.typed), folder=out)
    causes = sum(int(row.sum()) for row in truth.is_cause)
    explained = sum(len(row) for row in truth.is_cause)
    typer.echo(
        f"{len(log):,} users, {log.num_events:,} events, {len(log.catalogue)} items in {out}"
    )
    typer.echo(f"{causes:,} of {explained:,} explained events are causes")


@expanded(PlantedFraudConfig)
def planted_fraud(
    context: typer.Context, overrides: Overrides, out: OutFolder, config: Settings = None
) -> None:
    """Generate bank accounts, some taken over, with the events that caused each alarm."""
    from llm_influence.datasets.fraud import make_fraud

    log, truth = make_fraud(PlantedFraudConfig.load(config, overrides.typed), folder=out)
    typer.echo(f"{len(log):,} generated accounts, {log.num_events:,} events in {out}")
    typer.echo(f"{truth.is_fraud.sum():,} of {len(truth.alarms):,} alarms are fraud")
