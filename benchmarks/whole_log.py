"""Train on a whole log, without examples held out: for logs whose law makes as many as wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import EarlyStoppingCallback

from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.trainer import InfluenceTrainer, training_arguments


def fitted(config: RunConfig, log: BehaviorLog, folder: Path) -> InfluenceModel:
    """The model after the last epoch, in ``folder``/model; trained unless it is there."""
    place = folder / "model"
    if not (place / "model.json").exists():  # which is written last
        model = InfluenceModel.build(config, log)
        train(model, config, log, folder)
        model.save_pretrained(place)
    return InfluenceModel.from_pretrained(place)


def train(model: InfluenceModel, config: RunConfig, log: BehaviorLog, folder: Path) -> None:
    """Train on all of a log, to the last epoch."""
    last = EvaluationSet(log, np.arange(len(log)), log.lengths.astype(np.int64) - 1)
    arguments = training_arguments(config, folder, world_size=1)
    arguments.eval_strategy = arguments.save_strategy = "no"
    arguments.load_best_model_at_end = False
    # The trainer wants examples to choose an epoch by; none is chosen, so none is asked.
    trainer = InfluenceTrainer(config, model, Split(log, log, last, last, {}), arguments)
    trainer.remove_callback(EarlyStoppingCallback)
    trainer.train()
