"""Attention of a bf16 run on a CPU, in float32: there it is the faster one, and the more exact.

Adapters that change while they train: the trainer tells them how far the run is.

The order in which windows are read: at random, those of similar length side by side.

What fine-tuning and pretraining share: optimiser, order of the windows, checkpoints.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices

from llm_influence.config.run import RunConfig
from llm_influence.config.training import TrainConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.adapters import Adapter
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from llm_influence.training.batches import Inputs, WindowDataset

NAME = "sdpa_in_float32"


def attend_in_float32(model: PreTrainedModel) -> None:
    """Let a backbone with fused attention compute that, and that alone, in float32.

    PyTorch's fused attention takes about three times as long in bf16 as in float32 on a CPU with
    bf16 instructions (51 tokens, forward and backward), and as long on 512 tokens. Autocast would
    choose bf16. Backbones whose attention is not the fused one are left as they are.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, sdpa_in_float32)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attend_as_usual(model: PreTrainedModel) -> None:
    """Undo `attend_in_float32`."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


def sdpa_in_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Fused attention outside autocast; what comes back has the type that came in."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        states, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return states.to(query.dtype), weights


_FILE = "adapter_progress.safetensors"


class AdapterSchedule(TrainerCallback):
    """Calls `Adapter.begin` and, after every optimiser step, `Adapter.after_step`."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The trainer alone knows how many steps there will be."""
        self.adapter.begin(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Gradients are still there, and the step is not counted yet."""
        self.adapter.after_step(state.global_step + 1)


def save_progress(adapter: Adapter, checkpoint: Path) -> None:
    """Write what the adapter's schedule has gathered, if it has one."""
    if progress := adapter.progress():
        save_file(progress, checkpoint / _FILE)


def load_progress(adapter: Adapter, checkpoint: Path) -> None:
    """Put back what `save_progress` wrote."""
    path = checkpoint / _FILE
    if path.is_file():
        adapter.load_progress(load_file(path))


class LengthSampler(Sampler[int]):
    """Windows shuffled, then sorted by length within long stretches: batches hold little padding.

    The order depends on the seed and the epoch alone, so all processes and a resumed run agree on
    it; the Trainer's own sampler draws from each process's global generator.

    Args:
        lengths: Size of each window, in whatever costs time alike: tokens, or events.
        batch_size: Windows a step, over all processes.
        seed: Of the shuffle.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = list(lengths), batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins, counted from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Every window once, batch after batch in random order; a short batch comes last."""
        draw = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        size = self._batch_size
        places = get_length_grouped_indices(self._lengths, size, generator=draw)
        whole = len(places) // size * size
        # Left in order, every stretch would feed its long windows first and its short ones last.
        batches = torch.tensor(places[:whole], dtype=torch.int64).view(-1, size)
        shuffled = batches[torch.randperm(len(batches), generator=draw)]
        return iter(shuffled.flatten().tolist() + places[whole:])


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
