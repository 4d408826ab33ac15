"""The whole way on real data: fine-tune, evaluate, explain, analyse, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llm_influence.analysis.factors import LEAST_USERS, analyze_factors
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.batch.explain import explain_batch
from llm_influence.config.run import RunConfig
from llm_influence.evaluation.evaluate import Record, as_text, compare, verdict
from llm_influence.influence.table_files import read_tables
from llm_influence.report.page import build_report
from llm_influence.run import Run
from llm_influence.training.finetune import finetune

ANALYSED = "leave_one_out"
METHODS = ("group_shapley", ANALYSED, "integrated_gradients", "attention_rollout")
"""The first one is drawn large in the report, the others beside it. The factors are those of one
that scores each event alone."""

SETTING = (
    *("--output", "runs/movielens_100k", "--rendering.max_events", "20"),
    *("--model.layers", "3", "--model.dropout", "0", "--model.item_head.temperature", "0.2"),
    *("--model.item_head.memory.ages", "last_event"),
    *("--model.random_offset", "400"),
    *("--train.epochs", "2", "--train.batch_size", "16"),
)
"""What the demo changes in the defaults, as in configs/movielens_100k.yaml but for half the epochs.
Half of MiniLM predicts as well in half the time. Ages do not use the time of the next event, which
the baselines do not have."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made.

    Attributes:
        report: The HTML page.
        metrics: Test metrics of the model and of its baselines.
        finetune_seconds: Wall-clock seconds of building and fine-tuning the model.
        explanations: Explanations written, over all methods.
    """

    report: Path
    metrics: list[Record]
    finetune_seconds: float
    explanations: int


def demo_config(overrides: Sequence[str] = ()) -> RunConfig:
    """The demo's run, with dotted overrides on top, as in `RunConfig.load`.

    Raises:
        ConfigError: An override is wrong.
    """
    return RunConfig.load(None, [*SETTING, *overrides])


def run_demo(
    config: RunConfig, *, users: int = 24, say: Callable[[str], None] = print
) -> DemoResult:
    """Fine-tune (or go on with, or reuse, what the folder holds), evaluate, explain, report.

    Args:
        config: The run, usually `demo_config()`.
        users: Users explained, drawn at random from the run's seed.
        say: Function that prints a line of progress.
    """
    folder = Path(config.output)
    if (folder / "metrics.json").exists():
        say(f"1/4 {folder} holds a finished run: using it")
    else:
        say(f"1/4 fine-tuning {config.model.backbone} on {config.data.source}")
        finetune(config, resume=True)
    run = Run.open(folder)
    say("2/4 evaluating on the test split")
    metrics = compare(run.model, run.split, run.config.evaluation)
    say("\n" + as_text(metrics) + "\n")
    if ahead := verdict(metrics, run.config.evaluation.cutoff):
        say(ahead)
    say(f"3/4 explaining the recommendations of {users} users with {', '.join(METHODS)}")
    written = _explain(run, users)
    say("4/4 analysing the explanations and writing the report")
    influences = read_tables([folder / "influence" / method for method in METHODS])
    facts = run.report_facts(influences, {"items": metrics})
    report = build_report(
        influences=influences,
        facts=facts,
        out=folder / "report.html",
        analyses=_analyse(folder, say),
    )
    say(f"report: {report}")
    taken = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return DemoResult(report, metrics, taken["build_seconds"] + taken["seconds"], written)


def _sample(run: Run, users: int) -> list[str]:
    log = run.split.log
    draw = np.random.default_rng(run.config.train.seed)
    rows = np.sort(draw.choice(len(log), size=min(users, len(log)), replace=False))
    return [log.user_ids[int(row)].as_py() for row in rows]


def _explain(run: Run, users: int) -> int:
    log = run.split.log.select(_sample(run, users))
    written = 0
    for method in METHODS:
        out = run.folder / "influence" / method
        written += explain_batch(Explainer(run.model, method), log, out, run=run.folder.name).users
    return written


def _analyse(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """The folder with the factors of the explanations, where they can be had."""
    if find_spec("duckdb") is None:
        say("without factors: pip install 'llm-influence[analysis]' brings them into the report")
        return []
    out = folder / "analysis"
    with InfluenceView(folder / "influence" / ANALYSED) as view:
        if view.users < LEAST_USERS:
            say(f"without factors: they take explanations of {LEAST_USERS} users")
            return []
        analyze_factors(view).write(out)
    return [out]
