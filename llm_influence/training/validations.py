"""Validations in the middle of an epoch, so that the best moment of a run is found more finely."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
