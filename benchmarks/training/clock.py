"""Clocks around `InfluenceTrainer`: its steps against the bare backbone's, and where they go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch
from llm_influence.training.base_trainer import NAME as FLOAT32_ATTENTION
from llm_influence.training.base_trainer import attend_as_usual, attend_in_float32
from llm_influence.training.batches import Inputs
from llm_influence.training.trainer import InfluenceTrainer, training_arguments

REGIONS = ("data and collate", "embed", "backbone", "heads and loss", "backward", "optimizer")
LABELS = ("labels", "behavior_labels", "query_time", "step")


class WatchedTrainer(InfluenceTrainer):
    """Keeps the batches of its steps; reads windows in random order on request."""

    shuffled = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.batches: list[Inputs] = []

    def training_step(self, model: torch.nn.Module, inputs: Inputs, *rest: object) -> Tensor:
        """Our own step, of which the batch is noted."""
        self.batches.append(inputs)
        return super().training_step(model, inputs, *rest)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        ordered = super()._get_train_sampler(train_dataset)
        return RandomSampler(self.train_dataset) if self.shuffled else ordered


@contextmanager
def watched(
    config: RunConfig, model: InfluenceModel, split: Split, steps: int, *, shuffled: bool = False
) -> Iterator[WatchedTrainer]:
    """A trainer that takes ``steps`` steps and neither validates nor saves."""
    with TemporaryDirectory() as folder:
        arguments = training_arguments(config, Path(folder), world_size=1)
        arguments.max_steps, arguments.load_best_model_at_end = steps, False
        arguments.eval_strategy = arguments.save_strategy = "no"
        arguments.disable_tqdm = True
        trainer = WatchedTrainer(config, model, split, arguments)
        trainer.shuffled = shuffled
        trainer.remove_callback(EarlyStoppingCallback)
        yield trainer


def clock_for(device: torch.device) -> Callable[[], float]:
    """Seconds of the processor with one thread on a CPU, else of the clock on the wall.

    The former do not run while another program has the core.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


class Alternating(TrainerCallback):
    """After every few steps of the trainer, the bare backbone reads the same batches.

    A block of the trainer's runs from the end of the bare block before it: reading data, moving
    it, logging and schedules are all in it.

    Attributes:
        blocks: One record a block: seconds of ours, of the bare backbone with the attention that we
            train with and as transformers gives it, tokens.
    """

    def __init__(self, trainer: WatchedTrainer, size: int) -> None:
        self._trainer, self._size, self._begun = trainer, size, 0.0
        self._now = clock_for(trainer.args.device)
        self.blocks: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Start the first block."""
        self._begun = self._now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """End a block where one is full, run the bare one, start the next."""
        batches = self._trainer.batches
        if len(batches) < self._size:
            return
        block = {
            "seconds": self._now() - self._begun,
            "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
        }
        block["bare_seconds"] = sum(self._bare(batch) for batch in batches)
        block["transformers_seconds"] = block["bare_seconds"]
        backbone = self._trainer.influence_model.backbone.model
        if backbone.config._attn_implementation == FLOAT32_ATTENTION:
            attend_as_usual(backbone)
            block["transformers_seconds"] = sum(self._bare(batch) for batch in batches)
            attend_in_float32(backbone)
        self.blocks.append(block)
        batches.clear()
        self._begun = self._now()

    def _bare(self, inputs: Inputs) -> float:
        """Seconds of the backbone and its adapter, forward and backward, on one batch."""
        ready = bare_inputs(self._trainer, inputs)
        begun = self._now()
        bare_pass(self._trainer, *ready)
        seconds = self._now() - begun
        self._trainer.model.zero_grad()
        return seconds


def bare_inputs(trainer: WatchedTrainer, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(B, T, H) input vectors, which want a gradient where ours do, and (B, T) bool, no padding."""
    model, args = trainer.influence_model, trainer.args
    batch = EncodedBatch(
        **{name: value.to(args.device) for name, value in inputs.items() if name not in LABELS}
    )
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        embedded = model.embed(batch)
    return embedded.detach().requires_grad_(embedded.requires_grad), batch.attention_mask


def bare_pass(trainer: WatchedTrainer, vectors: Tensor, shown: Tensor) -> None:
    """What anybody's training of this backbone and adapter has to do, and no more.

    Forward from input vectors with a mask of padding alone, then back from the sum of squares.
    """
    model = trainer.influence_model
    decoder = {"use_cache": False} if model.backbone.kind == "decoder" else {}
    with torch.autocast(vectors.device.type, torch.bfloat16, enabled=trainer.args.bf16):
        found = model.body(inputs_embeds=vectors, attention_mask=shown.long(), **decoder)
        loss = found.last_hidden_state.float().square().sum()
    loss.backward()


def flops(trainer: WatchedTrainer, inputs: Inputs) -> tuple[int, int]:
    """Operations of the matrix products and attention of one step: of ours, of the bare one's."""
    with FlopCounterMode(display=False) as ours:
        trainer.training_step(trainer.model, inputs)
    ready = bare_inputs(trainer, inputs)
    with FlopCounterMode(display=False) as bare:
        bare_pass(trainer, *ready)
    trainer.model.zero_grad()
    trainer.batches.clear()
    return int(ours.get_total_flops()), int(bare.get_total_flops())


class RegionClock(TrainerCallback):
    """Seconds of the parts of training steps; a part inside another counts for itself alone.

    On a GPU it waits at every border, so the sum is a little more than an undisturbed step.

    Attributes:
        seconds: By region; ``the rest`` is what no region covers.
        steps: That were timed; the first is left out.
    """

    def __init__(self, trainer: WatchedTrainer) -> None:
        self._trainer, self._now = trainer, clock_for(trainer.args.device)
        self.seconds = dict.fromkeys([*REGIONS, "the rest"], 0.0)
        self.steps, self._place, self._since = 0, "the rest", 0.0
        model = trainer.influence_model
        for owner, name, region in (
            (trainer, "get_batch_samples", "data and collate"),
            (model, "embed", "embed"),
            (model, "attend", "backbone"),
            (trainer, "compute_loss", "heads and loss"),
            (trainer.accelerator, "backward", "backward"),
            (trainer, "_clip_grad_norm", "optimizer"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name), region))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The optimizer is there only now."""
        optimizer = self._trainer.optimizer
        optimizer.step = self._timed(optimizer.step, "optimizer")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Forget the first step, count the others."""
        self._enter("the rest")
        if state.global_step == 1:
            self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.steps = state.global_step - 1
        self._trainer.batches.clear()

    def _enter(self, region: str) -> str:
        """Book the time since the last border; gives back the region that ends here."""
        now, left = self._now(), self._place
        self.seconds[left] += now - self._since
        self._place, self._since = region, now
        return left

    def _timed(self, function: Callable[..., Any], region: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            outer = self._enter(region)
            try:
                return function(*arguments, **options)
            finally:
                self._enter(outer)

        return timed
