"""transformers.Trainer with our batches, our checkpoints and our validation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from llm_influence.config import RunConfig, TrainConfig
from llm_influence.data.splits import EvaluationSet, Split
from llm_influence.errors import ConfigError
from llm_influence.evaluation.ranking import ranking_metrics, target_ranks
from llm_influence.modeling.devices import on_cpu
from llm_influence.modeling.folder import restore_weights
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.attention import attend_as_usual, attend_in_float32
from llm_influence.training.augmentation import EventDropout
from llm_influence.training.negatives import Negatives, half_popular
from llm_influence.training.objectives import NextEventObjective
from llm_influence.training.sampling import LengthSampler
from llm_influence.training.schedule import AdapterSchedule, load_progress, save_progress
from llm_influence.training.validations import InnerValidations
from llm_influence.training.windows import (
    Inputs,
    RowCollator,
    RowDataset,
    WindowCollator,
    WindowDataset,
)


class InfluenceTrainer(Trainer):
    """Trains an `InfluenceModel` on windows and validates it by full ranking.

    What differs from its parent: two learning rates, ranks instead of logits as predictions (small
    enough to gather from every process), and checkpoints that hold what is trained alone.

    ``windows`` are those of ``split.train`` to train on; default: all of them.
    """

    data_collator: WindowCollator | RowCollator

    def __init__(
        self,
        config: RunConfig,
        model: InfluenceModel,
        split: Split,
        args: TrainingArguments,
        windows: WindowDataset | None = None,
    ) -> None:
        self._config = config
        train, cutoff = config.train, config.evaluation.cutoff
        objective = NextEventObjective(
            model,
            label_smoothing=train.label_smoothing,
            negatives=_negatives(config, model, split),
        )
        dropout = EventDropout(train.event_dropout, train.event_dropout_share, seed=train.seed)
        if windows is None:
            windows = WindowDataset(split.train, model.encoder)
        lengths = [window.stop - window.start for window in windows.windows]
        self._sampler = LengthSampler(lengths, train.batch_size, seed=train.seed)
        steps = math.ceil(len(windows) / train.batch_size)
        super().__init__(
            model=objective,
            train_dataset=windows,
            eval_dataset=RowDataset(split.validation),
            data_collator=WindowCollator(split.train, model.encoder, dropout),
            compute_metrics=lambda found: ranking_metrics(_flat(found), cutoff),
            callbacks=[
                EarlyStoppingCallback(train.patience),
                InnerValidations(train.validations_per_epoch, steps),
                AdapterSchedule(model.adapter),
                _EpochOf(windows, self._sampler),
                _AttentionOf(model.backbone.model),
            ],
            args=args,
        )

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
        self.optimizer = torch.optim.AdamW(groups, lr=train.learning_rate)
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

    def get_eval_dataloader(self, eval_dataset: RowDataset | None = None) -> DataLoader:
        """Rows of validation, rendered by their own collator."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        windows, self.data_collator = self.data_collator, self._row_collator(dataset.rows)
        try:
            return super().get_eval_dataloader(dataset)
        finally:
            self.data_collator = windows

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """Ranks of the targets, as predictions; in float32, as the saved model predicts."""
        inputs = self._prepare_inputs(inputs)
        labels, seen = inputs.pop("labels"), inputs.pop("seen", None)
        with torch.no_grad():
            states = self.influence_model.query(EncodedBatch(**inputs))
        ranks = target_ranks(self.influence_model.item_scores(states), labels, seen)
        return None, ranks.to(labels.device), labels

    def ranks(self, rows: EvaluationSet) -> np.ndarray:
        """(N,) rank of every row's target, each row counted once over all processes."""
        found: EvalLoopOutput = self.predict(RowDataset(rows))
        return np.asarray(found.predictions).reshape(-1)

    def get_test_dataloader(self, test_dataset: RowDataset) -> DataLoader:
        """Rows of a test set, rendered like those of validation."""
        return self.get_eval_dataloader(test_dataset)

    def _row_collator(self, rows: EvaluationSet) -> RowCollator:
        exclude = self._config.evaluation.exclude_seen
        return RowCollator(rows, self.influence_model.encoder, exclude_seen=exclude)

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

    def _load_best_model(self) -> None:
        restore_weights(self.influence_model, Path(self.state.best_model_checkpoint))


class _EpochOf(TrainerCallback):
    """Tells the windows and their order which epoch begins.

    Where several processes share a sampler, accelerate does not call a dataset's ``set_epoch``,
    nor a sampler's when a run goes on in the middle of an epoch.
    """

    def __init__(self, *parts: WindowDataset | LengthSampler) -> None:
        self._parts = parts

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        for part in self._parts:
            part.set_epoch(int(state.epoch))


class _AttentionOf(TrainerCallback):
    """Gives the backbone the faster attention of a bf16 run on a CPU while it trains."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if args.bf16 and args.device.type == "cpu":
            attend_in_float32(self._backbone)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        attend_as_usual(self._backbone)


def training_arguments(config: RunConfig, folder: Path, world_size: int) -> TrainingArguments:
    """The Trainer's own arguments for a run.

    Raises:
        ConfigError: The batch size cannot be shared among processes and accumulation steps.
    """
    train = config.train
    bf16 = wants_bf16(train)
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=train.epochs,
        use_cpu=on_cpu(),
        per_device_train_batch_size=_share(train, world_size),
        per_device_eval_batch_size=config.evaluation.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup,
        max_grad_norm=train.max_grad_norm,
        bf16=bf16,
        seed=train.seed,
        data_seed=train.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"ndcg@{config.evaluation.cutoff}",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # patience counts on after a break
        logging_strategy="steps",
        logging_steps=10,
        report_to=train.report_to,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # words of units: large, never trained, equal everywhere
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def wants_bf16(train: TrainConfig) -> bool:
    """Whether to train in bf16 autocast.

    ``auto`` asks the chip: on a CPU without bf16 instructions it is tens of times slower.
    """
    if train.precision != "auto":
        return train.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _negatives(config: RunConfig, model: InfluenceModel, split: Split) -> Negatives | None:
    """What a loss that draws draws from: gBCE is about even draws, see docs/large_catalogues.md."""
    head, items = config.model.item_head, len(model.catalogue)
    loss = head.loss_for(items)
    if loss == "full":
        return None
    even = np.full(items, 1 / items)
    proposal = even if loss == "gbce" else half_popular(split.train.items, items)
    return Negatives(proposal, head.negatives, seed=config.train.seed)


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


def _flat(found: EvalPrediction) -> np.ndarray:
    return np.asarray(found.predictions).reshape(-1)
