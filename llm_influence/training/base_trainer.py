"""The trainer that fine-tuning and pretraining share: optimiser, order of windows, checkpoints."""

from __future__ import annotations

import gc
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
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
from llm_influence.errors import ConfigError, OutputError, unreadable
from llm_influence.modeling.adapters import Adapter
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from llm_influence.training.batches import Inputs, WindowDataset

logger = logging.getLogger(__name__)

NAME = "sdpa_in_float32"
SPEED = ("runtime", "samples_per_second", "steps_per_second")
"""What the parent's validation measures beside the metrics."""


def attend_in_float32(model: PreTrainedModel) -> None:
    """Let the fused attention of a backbone compute in float32 under bf16 autocast.

    On a CPU with bf16 instructions PyTorch's fused attention takes about three times as long in
    bf16 as in float32 (51 tokens, forward and backward), and as long on 512 tokens. Backbones with
    another attention do not change.
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
    """Fused attention in float32; returns states of the type of the query."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        states, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return states.to(query.dtype), weights


_PROGRESS = "adapter_progress.safetensors"


class AdapterSchedule(TrainerCallback):
    """Calls `Adapter.begin`, and `Adapter.after_step` after every optimiser step."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Set the number of steps."""
        self.adapter.begin(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Update the adapter; gradients exist, and the step is not counted yet."""
        self.adapter.after_step(state.global_step + 1)


def save_progress(adapter: Adapter, checkpoint: Path) -> None:
    """Write the state of the adapter's schedule, if it has one."""
    if progress := adapter.progress():
        save_file(progress, checkpoint / _PROGRESS)


def load_progress(adapter: Adapter, checkpoint: Path) -> None:
    """Load the state of `save_progress`."""
    path = checkpoint / _PROGRESS
    if path.is_file():
        adapter.load_progress(load_file(path))


class LengthSampler(Sampler[int]):
    """Shuffles windows and groups similar lengths into a batch, which saves padding.

    The order depends on the seed and the epoch only, so all processes and a resumed run agree on
    it. The Trainer's own sampler draws from the global generator of each process.

    Args:
        lengths: Length of each window, in events or tokens.
        batch_size: Windows of a step, over all processes.
        seed: Seed of the shuffle.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = list(lengths), batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Every window once, in random order of batches; an incomplete batch comes last."""
        draw = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        size = self._batch_size
        places = get_length_grouped_indices(self._lengths, size, generator=draw)
        whole = len(places) // size * size
        # The groups are sorted from long to short, so their batches are shuffled again.
        batches = torch.tensor(places[:whole], dtype=torch.int64).view(-1, size)
        shuffled = batches[torch.randperm(len(batches), generator=draw)]
        return iter(shuffled.flatten().tolist() + places[whole:])


class ModelTrainer(Trainer):
    """Trains an `InfluenceModel`, which the objective has as its attribute ``model``.

    Differences from its parent: two learning rates, a deterministic order of windows, and
    checkpoints of the trained weights only.

    Args:
        config: The run.
        sampler: The order of the windows.
        options: Options of `transformers.Trainer`.
    """

    def __init__(
        self,
        config: RunConfig,
        sampler: LengthSampler,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._config, self._sampler = config, sampler
        super().__init__(**options)
        self.remove_callback(PrinterCallback)  # its parent prints every record as a dict
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressLine())

    @property
    def influence_model(self) -> InfluenceModel:
        """The model under training, without objective and process wrapper."""
        return self.accelerator.unwrap_model(self.model).model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; item residuals have their own learning rate, vectors have no weight decay."""
        train = self._config.train
        residual = self.influence_model.embeddings.residual
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
        """Train on one micro-batch; the step number makes all of a step draw the same items."""
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
        restore_weights(self.influence_model.parts, Path(resume_from_checkpoint))
        load_progress(self.influence_model.adapter, Path(resume_from_checkpoint))


class EpochCallback(TrainerCallback):
    """Sets the epoch of the windows and of their sampler.

    With several processes accelerate does not call ``set_epoch`` of a dataset, nor that of a
    sampler if a run resumes inside an epoch.
    """

    def __init__(self, *parts: WindowDataset | LengthSampler) -> None:
        self._parts = parts

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Set the epoch of all parts."""
        for part in self._parts:
            part.set_epoch(int(state.epoch))


class AttentionCallback(TrainerCallback):
    """Uses `attend_in_float32` while a bf16 run trains on a CPU."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Change the attention, if that is faster."""
        if args.bf16 and args.device.type == "cpu":
            attend_in_float32(self._backbone)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Restore the usual attention."""
        attend_as_usual(self._backbone)


class ProgressLine(TrainerCallback):
    """One bar of training steps with the loss; one line after each validation.

    The bar is shown on terminals alone, the lines always. Other processes than the first are quiet.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Open the bar."""
        shown = None if state.is_world_process_zero else True
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            leave=False,
            disable=shown,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Move the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Show the loss beside the bar, or the metrics of a validation in a line."""
        logs = logs or {}
        if "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        measured = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_")}
        metrics = [f"{name} {value:.4f}" for name, value in measured.items() if name not in SPEED]
        if metrics and state.is_world_process_zero:
            epoch = logs.get("epoch", 0.0)
            moment = f"epoch {epoch:g}" if epoch else "before training"
            self._bar.write(f"{moment}: validation {', '.join(metrics[:4])}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Close the bar."""
        self._bar.close()


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
        "disable_tqdm": True,  # `ProgressLine` instead
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # text vectors: large, equal everywhere
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def wants_bf16(train: TrainConfig) -> bool:
    """Whether to train in bf16 autocast; ``auto`` does so if the chip has bf16 instructions.

    On a CPU without them bf16 is tens of times slower.
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
    """Remove the process wrappers of the model, with their hooks, after training."""
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    gc.collect()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first: they have the trainer's state, which is written last."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return sorted(complete, key=lambda path: int(path.name.split("-")[1]))


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint whose files can be read; a warning names damaged ones.

    Raises:
        OutputError: There are checkpoints, and each has a damaged file.
    """
    damaged = None
    for checkpoint in reversed(checkpoints(folder)):
        found = damaged_file(checkpoint)
        if found is None:
            if damaged is not None:
                logger.warning("%s is damaged: training goes on from %s", damaged, checkpoint)
            return str(checkpoint)
        damaged = damaged or found
    if damaged is not None:
        raise unreadable(
            OutputError,
            damaged,
            "the file is damaged, and there is no other checkpoint that can be read",
            expected="one undamaged checkpoint",
            fix=f"remove {folder} and train again without --resume",
        )
    return None


def damaged_file(checkpoint: Path) -> Path | None:
    """The first file of a checkpoint that cannot be read; None if all can be."""
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in {".pt", ".pth", ".bin"}:  # archives with a checksum a part
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        return path
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
            return path
    return None
