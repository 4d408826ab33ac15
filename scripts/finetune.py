"""Fine-tune a model on a behaviour log, on one process or several.

    accelerate launch scripts/finetune.py --config configs/movielens_100k.yaml
    torchrun --nproc_per_node 2 scripts/finetune.py --config configs/movielens_100k.yaml
    python scripts/finetune.py --config my.yaml --resume --train.learning_rate 5e-4

Any option of the configuration can follow as --section.option value. Copy this file to change what
a run does.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from accelerate import PartialState

from llm_influence import InfluenceError, RunConfig, finetune


def main(config: RunConfig, *, resume: bool = False) -> None:
    """Fine-tune as ``config`` says and print the metrics."""
    result = finetune(config, resume=resume)
    if PartialState().is_main_process:
        print(json.dumps({"validation": result.validation, "test": result.test}, indent=2))
        print(f"{result.seconds:.0f} s of training, model folder: {result.folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="YAML file; default: MovieLens-100K")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    options, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(RunConfig.load(options.config, overrides), resume=options.resume)
    except InfluenceError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted. Run the same command again to continue.", file=sys.stderr)
        sys.exit(130)
