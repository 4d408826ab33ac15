"""Explain every user of a log, on one process or several. Run it again after a kill to continue.

accelerate launch scripts/explain_batch.py --model runs/movielens_100k --out influence/
torchrun --nproc_per_node 2 scripts/explain_batch.py --model RUN --events log.parquet --out DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from llm_influence import Explainer, InfluenceError, explain_batch
from llm_influence.run import Run


def main(options: argparse.Namespace) -> None:
    """Explain as ``options`` say and print what was written."""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    run = Run.open(options.model)
    log = run.open_log(options.events, items=options.items, users=options.users)
    settings = {n: vars(options)[n] for n in ("removal", "seed", "fidelity_masks", "agree_with")}
    explainer = Explainer(run.model, options.method, **settings)
    job = {"target": options.target, "shard_size": options.shard_size, "run": options.model.name}
    result = explain_batch(explainer, log, options.out, **job)
    if PartialState().is_main_process:
        print(f"{result.users} users, {result.rows} rows in {result.folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder that finetune wrote")
    add("--out", type=Path, required=True, help="folder of the Parquet shards")
    add("--events", help="behaviour log, a file or public name; default: the run's")
    add("--items", help="item table of --events")
    add("--users", help="user table of --events")
    add("--method", default="leave_one_out", help="see `llm-influence methods`")
    add("--target", default="top1", help="what is explained")
    add("--removal", choices=("drop", "mask", "replace"), help="of an event")
    add("--seed", type=int, default=0)
    add("--fidelity-masks", type=int, default=16, help="sets that test the scores")
    add("--agree-with", help="another method")
    add("--shard-size", type=int, default=128, help="users a shard")
    add("--threads", type=int, help="CPU threads of each process")
    try:
        main(parser.parse_args())
    except InfluenceError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted. Run the same command again to continue.", file=sys.stderr)
        sys.exit(130)
