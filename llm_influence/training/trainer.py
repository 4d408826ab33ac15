"""Validations in the middle of an epoch, so that the best moment of a run is found more finely.

transformers.Trainer with our batches, our checkpoints and our validation.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, feedback_labels
from llm_influence.errors import DataError
from llm_influence.evaluation.evaluate import (
    Examples,
    check_chosen,
    chosen_metric,
    head_metrics,
    row_scores,
)
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.augmentation import EventDropout, Views, drawn_items
from llm_influence.training.base_trainer import (
    AdapterSchedule,
    AttentionOf,
    EpochOf,
    LengthSampler,
    ModelTrainer,
    shared_arguments,
)
from llm_influence.training.batches import (
    Inputs,
    RowCollator,
    RowDataset,
    WeightedLabels,
    WindowCollator,
    WindowDataset,
)
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import Swaps, label_weights


class InnerValidations(TrainerCallback):
    """Validates, and saves what the best validation may want back, at even places in an epoch.

    The validation at an epoch's end is the Trainer's own, so this adds ``validations - 1``. Where
    an epoch has fewer steps than that, every step is followed by one.

    Args:
        validations: In an epoch, the one at its end included.
        steps: Optimiser steps in an epoch.
    """

    def __init__(self, validations: int, steps: int) -> None:
        marks = {round(steps * part / validations) for part in range(1, validations)}
        self._steps, self._marks = steps, marks - {0, steps}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Ask for a validation and a checkpoint where one is due."""
        due = state.global_step % self._steps in self._marks
        if due and state.global_step < state.max_steps:  # a run's last step is an epoch's end
            control.should_evaluate = control.should_save = True


def training_windows(
    config: RunConfig,
    model: InfluenceModel,
    log: BehaviorLog,
    pseudo: WeightedLabels | None = None,
) -> WindowDataset:
    """All windows of ``log`` that teach something.

    Where feedback is all that is learned, windows without a label of it have no loss and are not
    read: with few labels an epoch is short.

    Raises:
        DataError: Feedback is all that is learned, and no event has a label.
    """
    windows, asked = WindowDataset(log, model.encoder), config.model.feedback
    others = (
        config.model.item_head.weight,
        config.model.behavior_head.weight,
        config.train.contrastive.weight,
        config.train.fairness.weight,
    )
    if asked is None or any(others):
        return windows
    windows.keep_labelled(feedback_labels(log, asked) if pseudo is None else pseudo.labels)
    if not len(windows):
        raise DataError(
            "no event of training has a label of feedback",
            where="model.feedback_head",
            expected="labels, or another head with a weight above 0",
            fix="look at the log's label or value column, or give the item head a weight",
        )
    return windows


class InfluenceTrainer(ModelTrainer):
    """Trains an `InfluenceModel` on windows and measures all of its heads on validation.

    Its predictions are a few numbers a row instead of logits (`evaluation.heads.row_scores`):
    small enough to gather from every process. ``windows`` are those of ``split.train`` to train
    on; default: all of them.
    """

    data_collator: WindowCollator | RowCollator

    def __init__(
        self,
        config: RunConfig,
        model: InfluenceModel,
        split: Split,
        args: TrainingArguments,
        pseudo: WeightedLabels | None = None,
        windows: WindowDataset | None = None,
    ) -> None:
        self._top = 0
        check_chosen(config, split.validation)
        train, cutoff = config.train, config.evaluation.cutoff
        if windows is None:
            windows = training_windows(config, model, split.train, pseudo)
        objective = NextEventObjective(
            model,
            label_smoothing=train.label_smoothing,
            negatives=drawn_items(config, model.catalogue, split.train)
            if config.model.item_head.weight
            else None,
            contrastive=train.contrastive,
            adversarial=train.adversarial,
            propensity=label_weights(train.propensity, model.catalogue, split.train),
            fairness=train.fairness,
            read=windows.read,
        )
        dropout = EventDropout(train.event_dropout, train.event_dropout_share, seed=train.seed)
        lengths = [window.stop - window.start for window in windows.windows]
        sampler = LengthSampler(lengths, train.batch_size, seed=train.seed)
        steps = math.ceil(len(windows) / train.batch_size)
        super().__init__(
            config,
            sampler,
            model=objective,
            train_dataset=windows,
            eval_dataset=RowDataset(split.validation),
            data_collator=WindowCollator(
                split.train,
                model.encoder,
                dropout,
                Views(train.augmentation, seed=train.seed),
                contrast=train.contrastive.weight > 0,
                feedback=config.model.feedback,
                pseudo=pseudo,
                when=config.model.when,
                swaps=Swaps(train.fairness, model.encoder, seed=train.seed),
            ),
            compute_metrics=lambda found: head_metrics(model, found.predictions, cutoff),
            callbacks=[
                EarlyStoppingCallback(train.patience),
                InnerValidations(train.validations_per_epoch, steps),
                AdapterSchedule(model.adapter),
                EpochOf(windows, sampler),
                AttentionOf(model.backbone.model),
            ],
            args=args,
        )

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
    ) -> tuple[None, dict[str, Tensor], Tensor]:
        """What the heads say of rows, as predictions; in float32, as the saved model predicts."""
        inputs = self._prepare_inputs(inputs)
        names = {part.name for part in fields(EncodedBatch)}
        answers = {name: column for name, column in inputs.items() if name not in names}
        batch = EncodedBatch(**{name: inputs[name] for name in names})
        with torch.no_grad():
            found = row_scores(self.influence_model, batch, answers, top=self._top)
        return None, found, answers["labels"]

    def measure(self, rows: EvaluationSet) -> dict[str, float]:
        """Metrics of all heads, each row counted once over all processes.

        Beside what every validation measures, what the recommendations show people is measured.
        """
        cutoff = self._config.evaluation.cutoff
        self._top = min(cutoff, len(self.influence_model.catalogue))
        try:
            found: EvalLoopOutput = self.predict(RowDataset(rows))
        finally:
            self._top = 0
        return head_metrics(self.influence_model, found.predictions, cutoff)

    def get_test_dataloader(self, test_dataset: RowDataset) -> DataLoader:
        """Rows of a test set, rendered like those of validation."""
        return self.get_eval_dataloader(test_dataset)

    def _row_collator(self, rows: EvaluationSet) -> RowCollator:
        exclude, feedback = self._config.evaluation.exclude_seen, self._config.model.feedback
        model = self.influence_model
        examples = Examples(rows, exclude_seen=exclude, feedback=feedback, rules=model.rule_scores)
        return RowCollator(examples, model.encoder)

    # --- checkpoints -----------------------------------------------------------------------

    def _load_best_model(self) -> None:
        restore_weights(self.influence_model, Path(self.state.best_model_checkpoint))


def training_arguments(config: RunConfig, folder: Path, world_size: int) -> TrainingArguments:
    """The Trainer's own arguments for a run.

    Raises:
        ConfigError: The batch size cannot be shared among processes and accumulation steps.
    """
    metric, more_is_better = chosen_metric(config)
    return TrainingArguments(
        **shared_arguments(config, world_size),
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=config.train.epochs,
        learning_rate=config.train.learning_rate,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=more_is_better,
        restore_callback_states_from_checkpoint=True,  # patience counts on after a break
        logging_strategy="steps",
        logging_steps=10,
    )
