"""Explain every user of a log, on one process or many.

    accelerate launch scripts/explain_batch.py --model runs/movielens_100k --out influence/
    torchrun --nproc_per_node 2 scripts/explain_batch.py --model RUN --events log.parquet --out DIR

Killed and started again with the same options, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.methods import METHODS
from llm_influence.batch.explain import BatchResult, explain_batch
from llm_influence.errors import InfluenceError
from llm_influence.modeling.backbone import on_cpu
from llm_influence.run import Run


def main(options: argparse.Namespace) -> BatchResult:
    """Explain as ``options`` say; see `llm_influence.batch.explain`."""
    accelerator = Accelerator(cpu=on_cpu())
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run.open(options.model)
    log = run.open_log(options.log, items=options.items, users=options.users)
    explainer = Explainer(
        run.model,
        options.method,
        removal=options.removal,
        seed=options.seed,
        fidelity_masks=options.fidelity_masks,
        agree_with=options.agree_with,
    )
    result = explain_batch(
        explainer,
        log,
        options.out,
        target=options.target,
        shard_size=options.shard_size,
        run=options.model.name,
    )
    if accelerator.is_main_process:
        print(
            f"{result.users} users, {result.rows} rows in {result.folder}, {result.seconds:.1f} s"
        )
    accelerator.end_training()
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder that finetune wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet shards")
    parser.add_argument(
        "--events",
        "--log",  # torchrun takes --log for one of its own options
        dest="log",
        help="behaviour log, a file or public name; default: the run's own",
    )
    parser.add_argument("--items", help="item table that goes with --log")
    parser.add_argument("--users", help="user table that goes with --log")
    parser.add_argument("--method", default="leave_one_out", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--target", default="top1")
    parser.add_argument("--removal", help="drop or mask")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fidelity-masks", type=int, default=16, help="sets scores are tried on")
    parser.add_argument("--agree-with", help="another method to compare the scores with")
    parser.add_argument("--shard-size", type=int, default=128, help="users a shard")
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parse())
    except InfluenceError as error:
        sys.exit(f"error: {error}")
