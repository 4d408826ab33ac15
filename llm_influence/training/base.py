"""What fine-tuning and pretraining share: optimiser, order of the windows, checkpoints."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from llm_influence.config import RunConfig, TrainConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.devices import on_cpu
from llm_influence.modeling.folder import restore_weights
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.attention import attend_as_usual, attend_in_float32
from llm_influence.training.sampling import LengthSampler
from llm_influence.training.schedule import load_progress, save_progress
from llm_influence.training.windows import Inputs, WindowDataset


class ModelTrainer(Trainer):
    """Trains an `InfluenceModel` that an objective holds as ``model``.

    What differs from its parent: two learning rates, windows in an order that all processes and a
    resumed run agree on, and checkpoints that hold what is trained alone.

    Args:
        config: The run.
        sampler: The order of the windows.
        options: Go to the parent.
    """

    def __init__(
        self,
        config: RunConfig,
        sampler: LengthSampler,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._config, self._sampler = config, sampler
        super().__init__(**options)

    @property
    def influence_model(self) -> InfluenceModel:
        """The model under training, without the objective or any process wrapper."""
        return self.accelerator.unwrap_model(self.model).model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; item residuals have their own learning rate, and none of the small ones decay."""
        train = self._config.train
        residual = self.influence_model.units.residual
        trained = [p for p in self.model.parameters() if p.requires_grad and p is not residual]
        matrices = [p for p in trained if p.squeeze().ndim > 1]  # (N, 1) is a vector
        vectors = [p for p in trained if p.squeeze().ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
            {
                "params": [residual],
                "lr": train.item_learning_rate,
                "weight_decay": train.weight_decay,
            },
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: WindowDataset | None = None) -> Sampler[int]:
        return self._sampler

    def training_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch; all of a step's draw the same items, and so does a run that goes on."""
        numbered = {**inputs, "step": self.state.global_step}
        return super().training_step(model, numbered, num_items_in_batch)

    # --- checkpoints: one model folder of what is trained ---------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self.args.output_dir
        self.influence_model.save_pretrained(folder, with_backbone=False)
        save_progress(self.influence_model.adapter, Path(folder))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        restore_weights(self.influence_model, Path(resume_from_checkpoint))
        load_progress(self.influence_model.adapter, Path(resume_from_checkpoint))


class EpochOf(TrainerCallback):
    """Tells the windows and their order which epoch begins.

    Where several processes share a sampler, accelerate does not call a dataset's ``set_epoch``,
    nor a sampler's when a run goes on in the middle of an epoch.
    """

    def __init__(self, *parts: WindowDataset | LengthSampler) -> None:
        self._parts = parts

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Pass it on."""
        for part in self._parts:
            part.set_epoch(int(state.epoch))


class AttentionOf(TrainerCallback):
    """Gives the backbone the faster attention of a bf16 run on a CPU while it trains."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Change the attention where that is the faster one."""
        if args.bf16 and args.device.type == "cpu":
            attend_in_float32(self._backbone)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Change it back."""
        attend_as_usual(self._backbone)


def shared_arguments(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Arguments of every trainer of a run.

    Raises:
        ConfigError: The batch size cannot be shared among processes and accumulation steps.
    """
    train = config.train
    return {
        "use_cpu": on_cpu(),
        "per_device_train_batch_size": _share(train, world_size),
        "per_device_eval_batch_size": config.evaluation.batch_size,
        "gradient_accumulation_steps": train.accumulation,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup,
        "max_grad_norm": train.max_grad_norm,
        "bf16": wants_bf16(train),
        "seed": train.seed,
        "data_seed": train.seed,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": train.report_to,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # words of units: large, never trained, equal everywhere
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def wants_bf16(train: TrainConfig) -> bool:
    """Whether to train in bf16 autocast.

    ``auto`` asks the chip: on a CPU without bf16 instructions it is tens of times slower.
    """
    if train.precision != "auto":
        return train.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _share(train: TrainConfig, world_size: int) -> int:
    parts = world_size * train.accumulation
    if train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {train.batch_size} cannot be cut into {parts} equal parts",
            where=f"{world_size} processes x train.accumulation {train.accumulation}",
            expected=f"a multiple of {parts}",
            fix=f"set train.batch_size to {max(parts, train.batch_size // parts * parts)}",
        )
    return train.batch_size // parts


def release(trainer: ModelTrainer) -> None:
    """Let go of the model's wrappers: where processes share a model, their hooks go with them."""
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    gc.collect()


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint; one that was cut short lacks the state, which is written last."""
    whole = folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    step = {path.parent: int(path.parent.name.split("-")[1]) for path in whole}
    return str(max(step, key=step.__getitem__)) if step else None
