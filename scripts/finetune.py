"""Fine-tune a model on a behaviour log.

    accelerate launch scripts/finetune.py --config configs/movielens_100k.yaml
    torchrun --nproc_per_node 2 scripts/finetune.py --config configs/movielens_100k.yaml
    python scripts/finetune.py --config my.yaml --resume --train.learning_rate 5e-4

Any option of the configuration can follow as --section.option value. Copy this file to change what
a run does: it is all there is to one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from accelerate import Accelerator

from llm_influence.config.run import RunConfig
from llm_influence.errors import InfluenceError
from llm_influence.modeling.backbone import on_cpu
from llm_influence.training.finetune import FinetuneResult, finetune


def main(config: RunConfig, *, resume: bool = False) -> FinetuneResult:
    """Fine-tune as ``config`` says; see `llm_influence.training.finetune`."""
    accelerator = Accelerator(cpu=on_cpu())
    result = finetune(config, resume=resume)
    if accelerator.is_main_process:
        print(json.dumps({"validation": result.validation, "test": result.test}, indent=2))
        print(f"{result.seconds:.0f} s of training, model folder: {result.folder}")
    accelerator.end_training()  # several processes must part in order, or some abort at exit
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="YAML file; default: MovieLens-100K")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    known, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(RunConfig.load(known.config, overrides), resume=known.resume)
    except InfluenceError as error:
        sys.exit(f"error: {error}")
