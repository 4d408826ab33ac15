"""The command line. Every command calls one function of the Python API.

train          demo, finetune, search, update, tokenizer
explain        evaluate, explain, report, methods
faithfulness   faithfulness
analyze        analyze factors, channels, audit, dynamics; fairness-test, review
synthetic      planted, planted-fraud
about          config, env
options        options made from configurations and options dataclasses
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from llm_influence import __version__
from llm_influence.cli.about import config, env
from llm_influence.cli.analyze import analyze, fairness_test, review
from llm_influence.cli.explain import evaluate, explain, methods, report
from llm_influence.cli.faithfulness import faithfulness
from llm_influence.cli.options import OVERRIDES
from llm_influence.cli.synthetic import planted, planted_fraud
from llm_influence.cli.train import demo, finetune, search, tokenizer, update
from llm_influence.errors import InfluenceError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""

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
app.command(context_settings=OVERRIDES, rich_help_panel=START)(demo)
app.command(context_settings=OVERRIDES, rich_help_panel=TRAIN)(finetune)
app.command(rich_help_panel=TRAIN)(evaluate)
app.command(context_settings=OVERRIDES, rich_help_panel=TRAIN)(search)
app.command(context_settings=OVERRIDES, rich_help_panel=TRAIN)(update)
app.command(context_settings=OVERRIDES, rich_help_panel=TRAIN)(tokenizer)
app.command(rich_help_panel=EXPLAIN)(explain)
app.command(rich_help_panel=EXPLAIN)(report)
app.command(rich_help_panel=EXPLAIN)(methods)
app.command(rich_help_panel=STUDY)(faithfulness)
app.add_typer(analyze, name="analyze", rich_help_panel=STUDY)
app.command("fairness-test", rich_help_panel=STUDY)(fairness_test)
app.command(rich_help_panel=STUDY)(review)
app.command(context_settings=OVERRIDES, rich_help_panel=STUDY)(planted)
app.command("planted-fraud", context_settings=OVERRIDES, rich_help_panel=STUDY)(planted_fraud)
app.command(context_settings=OVERRIDES, rich_help_panel=HELP)(config)
app.command(rich_help_panel=HELP)(env)


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Explain which past events of a user make a language model predict the next one."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point. A user's error is one plain message and exit status 1; Ctrl-C is one line."""
    _quiet()
    try:
        app()
    except InfluenceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)


def _quiet() -> None:
    """Keep other libraries' bars, reports and warnings from between the lines of a command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
