"""The command line. Every command calls one function of the Python API.

train      demo, finetune, search, update, ensemble, tokenizer, planted, planted-fraud
explain    evaluate, explain, explain-training, report, methods
analyze    analyze factors, channels, audit, dynamics; fairness-test, review, faithfulness
about      config, env
options    options made from configurations and options dataclasses
serve      serve
demo_run   the steps of the demo
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from llm_influence import __version__
from llm_influence.cli.about import config, env
from llm_influence.cli.analyze import analyze, fairness_test, faithfulness, review
from llm_influence.cli.explain import evaluate, explain, explain_training, methods, report
from llm_influence.cli.options import INTERRUPTED, OVERRIDES, interruptible
from llm_influence.cli.serve import serve
from llm_influence.cli.train import (
    demo,
    ensemble,
    finetune,
    planted,
    planted_fraud,
    search,
    tokenizer,
    update,
)
from llm_influence.errors import InfluenceError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Explain which past events of a user make a language model predict the next one.",
)

START, TRAIN, EXPLAIN, STUDY, HELP = (
    "Start here",
    "Train and measure",
    "Explain",
    "Study explanations",
    "Options and environment",
)
COMMANDS = {
    START: {"demo": demo},
    TRAIN: {
        "finetune": finetune,
        "evaluate": evaluate,
        "search": search,
        "update": update,
        "ensemble": ensemble,
        "tokenizer": tokenizer,
    },
    EXPLAIN: {
        "explain": explain,
        "explain-training": explain_training,
        "report": report,
        "serve": serve,
        "methods": methods,
    },
    STUDY: {
        "faithfulness": faithfulness,
        "fairness-test": fairness_test,
        "review": review,
        "planted": planted,
        "planted-fraud": planted_fraud,
    },
    HELP: {"config": config, "env": env},
}
CONFIGURED = (demo, finetune, search, update, tokenizer, planted, planted_fraud, config)
"""Commands that take any option of a configuration."""

for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        settings = OVERRIDES if command in CONFIGURED else {}
        app.command(name, context_settings=settings, rich_help_panel=panel)(interruptible(command))
app.add_typer(analyze, name="analyze", rich_help_panel=STUDY)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Explain which past events of a user make a language model predict the next one."""


def main() -> None:
    """Entry point. A user's error is one plain message and exit status 1."""
    _quiet()
    try:
        app()
    except InfluenceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:  # before the command began
        sys.exit(INTERRUPTED)


def _quiet() -> None:
    """Keep other libraries' bars, reports and warnings from between the lines of a command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
