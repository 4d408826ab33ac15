"""Will they like it? MovieLens-100K beside its peers: docs/benchmarks/feedback_ml100k.json.

    python -m benchmarks.prediction.feedback --stage export
    python -m benchmarks.prediction.feedback --stage peers --systems tree,lstm
    python -m benchmarks.prediction.feedback --stage ours
    python -m benchmarks.prediction.feedback --stage joint
    python -m benchmarks.prediction.feedback --stage report

Without --stage all are done in that order. What is finished is not repeated, so a run that was
killed goes on where it stood. docs/results/feedback.md says what is equal for all systems.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.peer_runs import Budget
from benchmarks.peers.click_settings import PROGRAMS
from benchmarks.pinned import ROOT
from benchmarks.prediction.feedback_heads import run_joint
from benchmarks.prediction.feedback_report import write_report
from benchmarks.prediction.feedback_runs import OURS, FeedbackBench
from benchmarks.prediction.next_item import make_environment
from llm_influence.config.run import RunConfig

STAGES = ("export", "peers", "ours", "joint", "report")
CONFIG = Path("configs/movielens_100k_feedback.yaml")
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements_feedback.txt"
BUDGET = Budget(12, tuning_seconds=900, trial_seconds=180, final_seconds=450, patience=5)
"""What a peer may spend, if nothing else is said."""


def main(options: argparse.Namespace) -> None:
    """Do the stages that were asked for."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    bench = FeedbackBench(options.work, options.core, options.environment.absolute())
    stages = [options.stage] if options.stage else STAGES
    if "export" in stages:
        bench.export(RunConfig.load(options.config, options.ours))
    if "peers" in stages:
        budget = Budget.of(options)
        bench.references()
        make_environment(options.environment, REQUIREMENTS)
        for system in filter(None, options.systems.split(",")):
            bench.seeds(system, bench.tune(system, budget), seeds, budget)
    if "ours" in stages:
        bench.ours(OURS, options.config, options.ours, seeds)
    if "joint" in stages:
        run_joint(bench, options.config, options.ours, seeds)
    if "report" in stages:
        write_report(bench, options.output)


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Options of our configuration may follow as --section.option=value.",
    )
    parser.add_argument("--stage", choices=STAGES, help="default: all")
    parser.add_argument("--systems", default=",".join(PROGRAMS), help="peers to run")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--config", type=Path, default=CONFIG, help="our configuration")
    parser.add_argument("--work", type=Path, default=Path("runs/feedback"))
    parser.add_argument("--environment", type=Path, default=Path(".peers_feedback"))
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/feedback_ml100k.json"))
    parser.add_argument("--core", type=int, default=0, help="the core that runs are pinned to")
    BUDGET.add_to(parser)
    return parser.parse_known_args()


if __name__ == "__main__":
    known, overrides = _options()
    known.ours = overrides
    main(known)
