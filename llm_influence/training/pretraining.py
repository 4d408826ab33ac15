"""Domain-adaptive pretraining: language modelling on the log's own texts, before fine-tuning.

Gururangan et al. 2020 (arXiv:2004.10964). It runs on events of training alone, labels unread, and
leaves its own folder inside the run's:

pretraining/checkpoints/   what a run that was broken off goes on from
pretraining/               the weights, as a model folder without the backbone
pretraining/metrics.json   loss by epoch; written last: with it, pretraining is finished
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainingArguments

from llm_influence.config import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.files import write_text
from llm_influence.modeling.folder import restore_weights
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.base import (
    AttentionOf,
    EpochOf,
    ModelTrainer,
    last_checkpoint,
    release,
    shared_arguments,
)
from llm_influence.training.item_loss import ItemLoss
from llm_influence.training.language import LanguageCollator, LanguageObjective
from llm_influence.training.negatives import drawn_items
from llm_influence.training.sampling import LengthSampler
from llm_influence.training.windows import WindowDataset

PLACE = "pretraining"
METRICS = "metrics.json"
_OWN = "language.safetensors"


def pretrain(
    config: RunConfig, model: InfluenceModel, log: BehaviorLog, folder: Path
) -> dict[str, Any] | None:
    """Pretrain ``model`` as ``config.pretraining`` says, or put back what that has learned before.

    Args:
        config: The run.
        model: Fresh from `InfluenceModel.build`; its weights are changed in place.
        log: Events of training.
        folder: The run's folder.

    Returns:
        Metrics: objective, epochs, loss of each epoch, seconds; None where the block is off.

    Raises:
        ConfigError: The objective does not fit the model.
        OutputError: The folder cannot be written.
    """
    if not config.pretraining.epochs:
        return None
    place = folder / PLACE
    if (place / METRICS).is_file():
        restore_weights(model, place)
        return json.loads((place / METRICS).read_text(encoding="utf-8"))
    state, begun = PartialState(), time.perf_counter()
    with _trained(model, _parts(model)):
        trainer = PretrainingTrainer(config, model, log, place)
        trainer.train(resume_from_checkpoint=last_checkpoint(place / "checkpoints"))
    metrics = {
        "objective": config.pretraining.objective,
        "epochs": config.pretraining.epochs,
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": time.perf_counter() - begun,
    }
    release(trainer)
    if state.is_main_process:
        model.save_pretrained(place, with_backbone=False)
        write_text(place / METRICS, json.dumps(metrics, indent=2) + "\n")
    state.wait_for_everyone()
    return metrics


class PretrainingTrainer(ModelTrainer):
    """Trains the model's language on windows; there is nothing to validate.

    Checkpoints also hold what the objective has learned for itself: the vector of hidden tokens
    and the head of words.
    """

    def __init__(
        self, config: RunConfig, model: InfluenceModel, log: BehaviorLog, place: Path
    ) -> None:
        train = config.train
        items = ItemLoss(
            model,
            label_smoothing=train.label_smoothing,
            negatives=drawn_items(config, model.catalogue, log),
        )
        self._objective = LanguageObjective(model, config.pretraining, items)
        windows = WindowDataset(log, model.encoder)
        lengths = [window.stop - window.start for window in windows.windows]
        sampler = LengthSampler(lengths, train.batch_size, seed=train.seed)
        super().__init__(
            config,
            sampler,
            model=self._objective,
            train_dataset=windows,
            data_collator=LanguageCollator(log, model.encoder, config.pretraining, seed=train.seed),
            callbacks=[EpochOf(windows, sampler), AttentionOf(model.backbone.model)],
            args=pretraining_arguments(config, place, PartialState().num_processes),
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        own = {name: value.contiguous() for name, value in self._own_state().items()}
        if own:
            save_file(own, Path(output_dir or self.args.output_dir) / _OWN)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / _OWN
        if path.is_file():
            self._objective.load_state_dict(load_file(path), strict=False)

    def _own_state(self) -> dict[str, Any]:
        state = self._objective.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("model.")}


def pretraining_arguments(config: RunConfig, place: Path, world_size: int) -> TrainingArguments:
    """The Trainer's own arguments for pretraining.

    Raises:
        ConfigError: The batch size cannot be shared among processes and accumulation steps.
    """
    return TrainingArguments(
        **shared_arguments(config, world_size),
        output_dir=str(place / "checkpoints"),
        num_train_epochs=config.pretraining.epochs,
        learning_rate=config.pretraining.learning_rate,
        eval_strategy="no",
        logging_strategy="epoch",
    )


def _parts(model: InfluenceModel) -> tuple[str, ...]:
    """What pretraining trains: in style ``text`` no unit and no head of ours is read."""
    return ("body", "units", "item_head") if model.encoder.style == "token" else ("body",)


@contextmanager
def _trained(model: InfluenceModel, parts: tuple[str, ...]) -> Iterator[None]:
    """Only ``parts`` of the model get gradients; processes would wait for those of the others."""
    kept = {id(p) for name in parts for p in getattr(model, name).parameters()}
    still = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)
