"""Next-item prediction beside its peers: docs/benchmarks/prediction_ml100k.json and _beauty.json.

    python -m benchmarks.prediction.next_item --task ml100k --stage export
    python -m benchmarks.prediction.next_item --task ml100k --stage peers --systems sasrec,gru4rec
    python -m benchmarks.prediction.next_item --task ml100k --stage ours
    python -m benchmarks.prediction.next_item --task ml100k --stage report

Without --stage all four are done in that order. What is finished is not repeated, so a run that
was killed goes on where it stood. docs/results/prediction.md says what is equal for all systems.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.data.beauty import write_tables
from benchmarks.peer_runs import Budget
from benchmarks.peers.settings import PROGRAMS
from benchmarks.pinned import ROOT
from benchmarks.prediction.next_item_report import write_report
from benchmarks.prediction.next_item_runs import Bench
from llm_influence.config.run import RunConfig

REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements.txt"
BUDGET = Budget(8, tuning_seconds=600, trial_seconds=150, final_seconds=450, patience=10)
"""What a peer may spend, if nothing else is said."""
STAGES = ("export", "peers", "ours", "report")
CONFIGS = {
    "ml100k": Path("configs/movielens_100k.yaml"),
    "beauty": Path("configs/amazon_beauty.yaml"),
}

TWICE_AN_EPOCH = ["--train.validations_per_epoch=2", "--train.patience=6"]
"""Of ours on ML-100K: epochs are few and long, so the curve begins in the middle of the first."""


def main(options: argparse.Namespace) -> None:
    """Do the stages that were asked for."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    bench = Bench(
        options.task, options.work / options.task, options.core, options.environment.absolute()
    )
    beauty = options.task == "beauty"
    overrides = _beauty(options.shared, bench.folder) if beauty else []
    config = options.config or CONFIGS[options.task]
    stages = [options.stage] if options.stage else STAGES
    if "export" in stages:
        bench.export(RunConfig.load(None, overrides))
    if "peers" in stages:
        budget = Budget.of(options)
        make_environment(options.environment)
        bench.baselines()
        for system in options.systems.split(","):
            bench.seeds(system, bench.tune(system, budget), seeds, budget)
    if "ours" in stages:
        bench.ours(config, overrides + ([] if beauty else TWICE_AN_EPOCH), seeds)
    if "report" in stages:
        write_report(bench, Path(f"docs/benchmarks/prediction_{options.task}.json"))


def make_environment(folder: Path, requirements: Path = REQUIREMENTS) -> None:
    """Create the peers' virtual environment, unless it is there."""
    done = folder / "installed.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)  # noqa: S603
    install = ["-m", "pip", "install", "--only-binary", ":all:", "-r"]
    subprocess.run(  # noqa: S603
        [str(python), *install, str(requirements)], check=True
    )
    done.write_text(wanted, encoding="utf-8")


def _beauty(shared: Path, folder: Path) -> list[str]:
    events, items = write_tables(shared, folder)
    return [f"--data.source={events}", f"--data.items={items}"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=CONFIGS, default="ml100k")
    parser.add_argument("--stage", choices=STAGES, help="default: all")
    parser.add_argument("--systems", default=",".join(PROGRAMS), help="peers to run")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--config", type=Path, help="our configuration; default: configs/")
    parser.add_argument("--work", type=Path, default=Path("runs/prediction"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--environment", type=Path, default=Path(".peers"))
    parser.add_argument("--core", type=int, default=0, help="the core that runs are pinned to")
    BUDGET.add_to(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main(_options())
