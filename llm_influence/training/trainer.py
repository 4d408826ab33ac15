"""The trainer of fine-tuning: windows, objective, validations inside an epoch, and test."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
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
from llm_influence.training.augmentation import EventDropout, Views, drawn_items
from llm_influence.training.base_trainer import (
    AdapterSchedule,
    AttentionCallback,
    EpochCallback,
    LengthSampler,
    ModelTrainer,
    checkpoints,
    shared_arguments,
)
from llm_influence.training.batches import (
    ExampleCollator,
    ExampleDataset,
    Inputs,
    WeightedLabels,
    WindowCollator,
    WindowDataset,
    encoded_batch,
)
from llm_influence.training.calibration import fit_lift, fit_scales
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import Swaps, label_weights

if TYPE_CHECKING:
    from optuna import Trial

logger = logging.getLogger(__name__)


class InnerValidations(TrainerCallback):
    """Validates and saves at evenly spaced steps of an epoch.

    The Trainer itself validates at the end of an epoch, so this adds ``validations - 1``. In an
    epoch with fewer steps every step is followed by one.

    Args:
        validations: Number in an epoch, the one at its end included.
        steps: Optimiser steps of an epoch.
    """

    def __init__(self, validations: int, steps: int) -> None:
        marks = {round(steps * part / validations) for part in range(1, validations)}
        self._steps, self._marks = steps, marks - {0, steps}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Request a validation and a checkpoint if one is due."""
        due = state.global_step % self._steps in self._marks
        if due and state.global_step < state.max_steps:  # the last step ends an epoch
            control.should_evaluate = control.should_save = True


class ValidationReports(TrainerCallback):
    """Reports the metric that chooses the epoch, and ends the trial if the pruner decides so.

    Validations are counted from 1. One that a resumed trial repeats keeps its first value.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, *_: object, **given: dict[str, float]
    ) -> None:
        """Report a validation, negated where lower is better, as a study maximises.

        Raises:
            optuna.TrialPruned: The trial is worse than the median of the others.
        """
        from optuna import TrialPruned

        metric = args.metric_for_best_model.removeprefix("eval_")
        number = sum(f"eval_{metric}" in entry for entry in state.log_history)
        self.trial.set_user_attr("metric", metric)
        if number not in self.reported():
            value = given["metrics"][f"eval_{metric}"]
            self.trial.report(value if args.greater_is_better else -value, number)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise TrialPruned(f"validation {number} was below the median")

    def reported(self) -> dict[int, float]:
        """The reported values by validation, those before a resume included."""
        trials = self.trial.study.get_trials(deepcopy=False)
        return trials[self.trial.number].intermediate_values


def training_windows(
    config: RunConfig,
    model: InfluenceModel,
    log: BehaviorLog,
    pseudo: WeightedLabels | None = None,
) -> WindowDataset:
    """All windows of a log that have a loss.

    If only the feedback head is trained, windows without a feedback label are left out.

    Raises:
        DataError: Only the feedback head is trained, and no event has a label.
    """
    prefixes, feedback = config.train.examples == "prefixes", config.model.feedback
    windows = WindowDataset(log, model.encoder, prefixes=prefixes)
    others = (
        config.model.item_head.weight,
        config.model.behavior_head.weight,
        config.train.contrastive.weight,
        config.train.fairness.weight,
    )
    if feedback is None or any(others):
        return windows
    windows.keep_labelled(feedback_labels(log, feedback) if pseudo is None else pseudo.labels)
    if not len(windows):
        raise DataError(
            "no event of training has a feedback label",
            where="model.feedback_head",
            expected="labels, or another head with a weight above 0",
            fix="check the log's label or value column, or set model.item_head.weight above 0",
        )
    return windows


class InfluenceTrainer(ModelTrainer):
    """Trains an `InfluenceModel` on windows and measures all of its heads on validation.

    Its predictions are a few numbers an example instead of logits (`row_scores`), which are small
    enough to gather from all processes.

    Args:
        config: The run.
        model: The model.
        split: Training events, and the validation that chooses the epoch.
        args: Made by `training_arguments`.
        pseudo: Labels that replace those of the log, see `pseudo_labels`.
        windows: Windows of ``split.train``; default: `training_windows`.
    """

    data_collator: WindowCollator | ExampleCollator

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
            teacher=InfluenceModel.from_pretrained(train.teacher) if train.teacher else None,
            distillation=train.distillation,
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
            eval_dataset=ExampleDataset(split.validation),
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
            compute_metrics=lambda output: head_metrics(model, output.predictions, cutoff),
            callbacks=[
                EarlyStoppingCallback(train.patience),
                InnerValidations(train.validations_per_epoch, steps),
                AdapterSchedule(model.adapter),
                EpochCallback(windows, sampler),
                AttentionCallback(model.backbone.model),
            ],
            args=args,
        )

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:  # noqa: ANN401
        """Validate, after the scales of the memory have been fitted on validation."""
        fit_scales(self.influence_model, self.eval_dataset.rows, self._config.evaluation)
        metrics: dict[str, float] = super().evaluate(*arguments, **options)
        return metrics

    def get_eval_dataloader(self, eval_dataset: ExampleDataset | None = None) -> DataLoader:
        """Validation examples with their own collator."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        windows, self.data_collator = self.data_collator, self._example_collator(dataset.rows)
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
        """`row_scores` of a batch, in float32, as the saved model predicts."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            query = self.influence_model.query(encoded_batch(inputs))
            scores = row_scores(self.influence_model, query, inputs, top=self._top)
        return None, scores, inputs["labels"]

    def measure(self, rows: EvaluationSet) -> dict[str, float]:
        """Metrics of all heads, over all processes; also coverage and popularity."""
        cutoff = self._config.evaluation.cutoff
        self._top = min(cutoff, len(self.influence_model.catalogue))
        try:
            output: EvalLoopOutput = self.predict(ExampleDataset(rows))
        finally:
            self._top = 0
        return head_metrics(self.influence_model, output.predictions, cutoff)

    def get_test_dataloader(self, test_dataset: ExampleDataset) -> DataLoader:
        """Test examples, collated as those of validation."""
        return self.get_eval_dataloader(test_dataset)

    def _example_collator(self, rows: EvaluationSet) -> ExampleCollator:
        model = self.influence_model
        return ExampleCollator(Examples.of(model, rows, self._config.evaluation), model.encoder)

    # --- checkpoints -----------------------------------------------------------------------

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if not (self._config.train.average_last and self._use_average()):
            restore_weights(self.influence_model.parts, best)
        fit_lift(self.influence_model, self.eval_dataset.rows, self._config.evaluation)

    def _use_average(self) -> bool:
        """Average the last checkpoints; whether the average is better than the best of all.

        The result is an entry ``averaged`` of the log.
        """
        model, last = self.influence_model, self._config.train.average_last
        folders = checkpoints(Path(self.args.output_dir))[-last:]
        average = None
        for folder in folders:
            restore_weights(model.parts, folder)
            average = AveragedModel(Trained(model)) if average is None else average
            average.update_parameters(Trained(model))
        if average is None:
            return False
        with torch.no_grad():
            for own, mean in zip(Trained(model).parameters(), average.parameters(), strict=True):
                own.copy_(mean)
        fit_scales(model, self.eval_dataset.rows, self._config.evaluation)
        name = self.args.metric_for_best_model.removeprefix("eval_")
        value, best = self.measure(self.eval_dataset.rows)[name], self.state.best_metric
        better = bool(value > best if self.args.greater_is_better else value < best)
        entry = {"averaged": len(folders), name: value, "used": better}
        self.state.log_history.append(entry | {"step": self.state.global_step})
        logger.info(
            "average of %d checkpoints: %s %.4f, best %.4f", len(folders), name, value, best
        )
        return better


class Trained(nn.Module):
    """The trained parameters of a model; an `AveragedModel` of it copies nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(p for p in model.parameters() if p.requires_grad)


def training_arguments(config: RunConfig, folder: Path, world_size: int) -> TrainingArguments:
    """The Trainer's own arguments for a run.

    Raises:
        ConfigError: The batch size cannot be shared among processes and accumulation steps.
    """
    metric, more_is_better = chosen_metric(config)
    kept = {"save_total_limit": max(2, config.train.average_last + 1)}
    return TrainingArguments(
        **(shared_arguments(config, world_size) | kept),
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=config.train.epochs,
        learning_rate=config.train.learning_rate,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=more_is_better,
        restore_callback_states_from_checkpoint=True,  # patience continues after a resume
        logging_strategy="steps",
        logging_steps=10,
    )
