"""The command line: thin, it calls the same functions as `scripts/` and the Python API.

train          demo, finetune, search, update, evaluate, tokenizer
explain        explain, report, methods
faithfulness   faithfulness
analyze        analyze factors, attribution, audit, dynamics
audit          flips, review
planted        planted, planted-fraud
options, method_options   what several of them ask for
"""

from __future__ import annotations

import os
import sys

import typer

from llm_influence.cli.analyze import analyze, flips, review
from llm_influence.cli.explain import explain, methods, report
from llm_influence.cli.faithfulness import faithfulness
from llm_influence.cli.synthetic import planted, planted_fraud
from llm_influence.cli.train import demo, evaluate, finetune, search, tokenizer, update
from llm_influence.errors import InfluenceError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which of the things a user did made the model predict what they do next, and how much?",
)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of commands that take any option of their configuration."""

app.command(context_settings=OVERRIDES)(demo)
app.command(context_settings=OVERRIDES)(finetune)
app.command(context_settings=OVERRIDES)(search)
app.command(context_settings=OVERRIDES)(update)
app.command()(evaluate)
app.command()(explain)
app.command()(faithfulness)
app.add_typer(analyze, name="analyze")
app.command()(flips)
app.command()(review)
app.command()(report)
app.command()(methods)
app.command(context_settings=OVERRIDES)(planted)
app.command(context_settings=OVERRIDES)(planted_fraud)
app.command(context_settings=OVERRIDES)(tokenizer)


def main() -> None:
    """Entry point: a user's error is one plain message and exit status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except InfluenceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
