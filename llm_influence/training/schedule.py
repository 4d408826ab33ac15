"""Adapters that change while they train: the trainer tells them how far the run is."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_influence.modeling.adapters import Adapter

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
