"""What a running trial tells its study: every validation of the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from optuna import Trial


class ValidationReports(TrainerCallback):
    """Reports each validation to a trial and ends it where the study's pruner says so.

    Validations are counted from 1; one that a run repeats after a break keeps its number and its
    first report. What is reported is the metric that the trainer chooses its best epoch by, with
    its sign turned where lower values are better: a study maximises.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: object,
    ) -> None:
        """Report, and break off a trial that is not worth going on with.

        Raises:
            optuna.TrialPruned: The pruner has seen enough.
        """
        from optuna import TrialPruned

        name = metric_of(args)
        number = sum(name in entry for entry in state.log_history)
        self.trial.set_user_attr("metric", name.removeprefix("eval_"))
        if number not in self.reported():
            self.trial.report(sign_of(args) * metrics[name], number)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise TrialPruned(f"validation {number} was below the median")

    def reported(self) -> dict[int, float]:
        """What was reported of this trial so far, before a break as well, by number."""
        study, number = self.trial.study, self.trial.number
        return study.get_trials(deepcopy=False)[number].intermediate_values


def metric_of(args: TrainingArguments) -> str:
    """The trainer's name of the metric that an epoch is chosen by."""
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def sign_of(args: TrainingArguments) -> int:
    """1 where a higher value is better, else -1."""
    return 1 if args.greater_is_better else -1
