"""Domain-adaptive pretraining: language modelling on the rendered log, before fine-tuning.

Gururangan et al. 2020 (arXiv:2004.10964). It reads training events without their labels. Only
tokens of event fields are predicted: never the template's own words, and never the field
``value``, which feedback heads learn. A token is predicted by its own input vector (tied
embeddings, Press & Wolf 2017, arXiv:1608.05859). Pretraining leaves a folder in the run's:

pretraining/checkpoints/   to resume pretraining
pretraining/               the weights, as a model folder without backbone
pretraining/metrics.json   loss of each epoch; written last: with it, pretraining is finished
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

from llm_influence.config.model import ItemHeadConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import PretrainingConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.heads import ItemHead
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from llm_influence.rendering.encoder import EncodedBatch, Encoder, collate
from llm_influence.rendering.template import FIELDS
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.training.augmentation import drawn_items
from llm_influence.training.base_trainer import (
    AttentionCallback,
    EpochCallback,
    LengthSampler,
    ModelTrainer,
    last_checkpoint,
    release,
    shared_arguments,
)
from llm_influence.training.batches import IGNORE, Inputs, Window, WindowDataset, batch_inputs
from llm_influence.training.item_losses import ItemLoss
from llm_influence.types import BoolArray
from llm_influence.utils import write_text

OWN_BLOCKS = ("behavior", "gap", "hour", "weekday", "times")
"""Fields whose tokens are predicted among those of the same field; items have their own loss."""

CHUNK = 1024
"""Tokens scored against the whole vocabulary at a time; affects memory only."""


def check_objective(config: PretrainingConfig, model: InfluenceModel) -> None:
    """Check that the model can learn from the objective.

    Raises:
        ConfigError: The attention does not fit the objective, the template has nothing to predict,
            or no trained weight would be kept.
    """
    template, encoder = model.encoder.template, model.backbone.kind == "encoder"
    text, fields = model.encoder.style == "text", _fields(model)
    problem, fix = "", ""
    if config.objective == "masked" and not encoder:
        problem = f"a {model.backbone.kind} model never sees the tokens after a hidden one"
        fix = "set pretraining.objective to causal"
    elif config.objective == "causal" and encoder and (text or len(fields) > 1):
        problem = "an encoder sees all tokens of an event at once, also those it should predict"
        fix = "set pretraining.objective to masked, or use a template of one token an event"
    elif not set(fields) - {"value"}:
        problem = f"template {template.name!r} has no field except value, which is not predicted"
        fix = "use a template with items or behaviours"
    elif text and model.backbone.input_width != model.backbone.width:
        width = model.backbone.input_width
        problem = f"words have vectors of {width} numbers, states {model.backbone.width}"
        fix = f"choose a backbone with states of that width (model.recurrent.width {width})"
    elif text and model.config.adapter.kind == "frozen":
        problem = "a frozen backbone learns nothing from words"
        fix = "choose another model.adapter.kind, or set pretraining.epochs to 0"
    if problem:
        raise ConfigError(
            problem,
            where=f"pretraining.objective {config.objective!r}",
            expected="an objective that the model can learn from",
            fix=fix,
        )


def _fields(model: InfluenceModel) -> list[str]:
    """The fields of an event in the template."""
    return [chunk.field for chunk in model.encoder.template.event_chunks if chunk.field]


class LanguageCollator:
    """Collates windows with the tokens that are predicted.

    All events of a window are rendered, the last one too. ``labels`` (B, T) holds the id of each
    predicted token at its own place. With the masked objective its id is removed from the input,
    and ``hidden`` (B, T) marks the place. The hidden tokens depend on the seed, the epoch and the
    window only.

    Args:
        log: Training events.
        encoder: Renders the windows.
        config: Objective and share of hidden tokens.
        seed: Seed of the draws.
    """

    def __init__(
        self, log: BehaviorLog, encoder: Encoder, config: PretrainingConfig, *, seed: int = 0
    ) -> None:
        self._log, self._encoder, self._config, self._seed = log, encoder, config, seed

    def __call__(self, windows: Sequence[Window]) -> Inputs:
        """The batch of B windows."""
        whole = [self._log.at(w.user, w.stop + 1).keep(slice(w.start, None)) for w in windows]
        batch = collate(self._encoder.encode(whole))
        predicted = predictable(batch)
        if self._config.objective == "masked":
            rows = zip(predicted.numpy(), windows, strict=True)
            predicted = torch.from_numpy(np.stack([self._drawn(row, w) for row, w in rows]))
        inputs = batch_inputs(batch)
        inputs["labels"] = batch.input_ids.masked_fill(~predicted, IGNORE)
        if self._config.objective == "masked":
            inputs["input_ids"] = batch.input_ids.masked_fill(predicted, 0)
            inputs["added_ids"] = batch.added_ids.masked_fill(predicted[..., None], -1)
            inputs["hidden"] = predicted
        return inputs

    def _drawn(self, predictable: BoolArray, window: Window) -> BoolArray:
        """A random share of the predictable tokens of a window, at least one."""
        draw = np.random.default_rng([self._seed, *window.draws_by().values(), 1, 1])
        coins = draw.random(int(predictable.sum()))
        drawn = np.zeros_like(predictable)
        drawn[predictable] = coins <= max(self._config.mask_share, coins.min(initial=1.0))
        return drawn


def predictable(batch: EncodedBatch) -> Tensor:
    """(B, T) bool, tokens that may be predicted: those of event fields except ``value``."""
    return (batch.field_index >= 0) & (batch.field_index != FIELDS.index("value"))


class LanguageObjective(nn.Module):
    """Cross-entropy of hidden tokens (masked), or of every token from those before it (causal).

    The states are those of fine-tuning, under the same attention mask. In style ``token`` the item
    head scores the tokens of the same field; items have the loss of fine-tuning. In style ``text``
    a temporary head scores the tokenizer's vocabulary. Losses are divided by the number of labels
    of the whole step, as in fine-tuning.

    Args:
        model: The model that is trained.
        config: The objective.
        item_loss: Loss of items.
    """

    def __init__(
        self, model: InfluenceModel, config: PretrainingConfig, item_loss: ItemLoss
    ) -> None:
        super().__init__()
        check_objective(config, model)
        self.model, self._config, self._item_loss = model, config, item_loss
        width = model.backbone.width
        self.words = ItemHead(width, ItemHeadConfig()) if model.encoder.style == "text" else None
        masked = config.objective == "masked"
        self.hidden = nn.Parameter(_mask_vector(model, width)) if masked else None

    def forward(
        self,
        labels: Tensor,
        hidden: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        step: int = 0,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of one micro-batch.

        Args:
            labels: (B, T) ids of the predicted tokens, at their own places.
            hidden: (B, T) bool, places whose input is one learned vector instead of the token's.
            num_items_in_batch: Labels of the whole step; default: of this micro-batch.
            step: Number of the optimiser step, which decides the drawn items.
            inputs: The tensors of an `EncodedBatch`.
        """
        states, known = self.states(hidden, **inputs), labels != IGNORE
        if self._config.objective == "causal":
            states, known, labels = states[:, :-1], known[:, 1:], labels[:, 1:]
        states, labels = states[known], labels[known]
        if self.words is None:
            loss = self._field_loss(states, labels, step)
        else:
            loss = self._word_loss(states, labels)
        penalty = self.model.adapter.penalty()
        if penalty is not None:
            loss = loss + penalty * len(labels)
        return {"loss": loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)}

    def states(self, hidden: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """(B, T, H) states that predict their own token (masked) or the next one (causal)."""
        batch = EncodedBatch(**inputs)
        vectors = self.model.embed(batch)
        if hidden is not None and self.hidden is not None:
            vectors = torch.where(hidden[..., None], self.hidden, vectors)
        return self.model.states(batch, vectors)

    def _word_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Loss of words against the tokenizer's vocabulary, in chunks to save memory."""
        words = self.model.body.get_input_embeddings().weight
        parts = zip(states.split(CHUNK), labels.split(CHUNK), strict=True)
        losses = [
            checkpoint(_cross_entropy, self.words, part, words, target, use_reentrant=False)
            for part, target in parts
        ]
        return torch.stack(losses).sum()

    def _field_loss(self, states: Tensor, labels: Tensor, step: int) -> Tensor:
        """Loss of tokens against the other tokens of their field."""
        first, cache = self.model.first_item, self.model.encoder.token_cache
        items = labels >= first
        loss = self._item_loss(QueryState(states[items]), labels[items] - first, step)
        fields = _fields(self.model)
        for field in [field for field in OWN_BLOCKS if field in fields]:
            ids = cache.ids_of(field) if isinstance(cache, IdTokenCache) else range(0)
            own = (labels >= ids.start) & (labels < ids.stop)
            vectors = self.model.embeddings(slice(ids.start, ids.stop))
            loss = loss + _cross_entropy(
                self.model.item_head, states[own], vectors, labels[own] - ids.start
            )
        return loss


def _cross_entropy(head: ItemHead, states: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(QueryState(states), vectors).float(), labels, reduction="sum")


def _mask_vector(model: InfluenceModel, width: int) -> Tensor:
    """(H,) initial input vector of hidden tokens: the tokenizer's mask token, or zeros."""
    mask = model.encoder.tokenizer.mask_token_id if model.encoder.tokenizer else None
    if model.encoder.style == "text" and mask is not None:
        embeddings = model.body.get_input_embeddings()
        return embeddings.weight[mask].detach().clone()
    return torch.zeros(width)


PLACE = "pretraining"
METRICS = "metrics.json"
_OWN = "language.safetensors"


def pretrain(
    config: RunConfig, model: InfluenceModel, log: BehaviorLog, folder: Path
) -> dict[str, Any] | None:
    """Pretrain a model, or load the weights of a pretraining that is finished.

    Args:
        config: The run.
        model: A new model of `InfluenceModel.build`; its weights are changed in place.
        log: Training events.
        folder: The run's folder.

    Returns:
        Metrics: objective, epochs, loss of each epoch, seconds; None without pretraining.

    Raises:
        ConfigError: The objective does not fit the model.
        OutputError: The folder cannot be written.
    """
    if not config.pretraining.epochs:
        return None
    place = folder / PLACE
    if (place / METRICS).is_file():
        restore_weights(model.parts, place)
        return json.loads((place / METRICS).read_text(encoding="utf-8"))
    state, begun = PartialState(), time.perf_counter()
    with _trained(model, _parts(model)):
        trainer = PretrainingTrainer(config, model, log, place)
        trainer.train(resume_from_checkpoint=last_checkpoint(place / "checkpoints"))
    metrics = {
        "objective": config.pretraining.objective,
        "epochs": config.pretraining.epochs,
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": time.perf_counter() - begun,
    }
    release(trainer)
    if state.is_main_process:
        model.save_pretrained(place, with_backbone=False)
        write_text(place / METRICS, json.dumps(metrics, indent=2) + "\n")
    state.wait_for_everyone()
    return metrics


class PretrainingTrainer(ModelTrainer):
    """Trains language modelling on windows, without validation.

    Checkpoints also hold the weights of the objective itself: the vector of hidden tokens and the
    head of words.
    """

    def __init__(
        self, config: RunConfig, model: InfluenceModel, log: BehaviorLog, place: Path
    ) -> None:
        train = config.train
        items = ItemLoss(
            model,
            label_smoothing=train.label_smoothing,
            negatives=drawn_items(config, model.catalogue, log),
        )
        self._objective = LanguageObjective(model, config.pretraining, items)
        windows = WindowDataset(log, model.encoder)
        lengths = [window.stop - window.start for window in windows.windows]
        sampler = LengthSampler(lengths, train.batch_size, seed=train.seed)
        super().__init__(
            config,
            sampler,
            model=self._objective,
            train_dataset=windows,
            data_collator=LanguageCollator(log, model.encoder, config.pretraining, seed=train.seed),
            callbacks=[EpochCallback(windows, sampler), AttentionCallback(model.backbone.model)],
            args=pretraining_arguments(config, place, PartialState().num_processes),
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        own = {name: value.contiguous() for name, value in self._own_state().items()}
        if own:
            save_file(own, Path(output_dir or self.args.output_dir) / _OWN)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / _OWN
        if path.is_file():
            self._objective.load_state_dict(load_file(path), strict=False)

    def _own_state(self) -> dict[str, Any]:
        state = self._objective.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("model.")}


def pretraining_arguments(config: RunConfig, place: Path, world_size: int) -> TrainingArguments:
    """The Trainer's own arguments for pretraining.

    Raises:
        ConfigError: The batch size cannot be shared among processes and accumulation steps.
    """
    return TrainingArguments(
        **shared_arguments(config, world_size),
        output_dir=str(place / "checkpoints"),
        num_train_epochs=config.pretraining.epochs,
        learning_rate=config.pretraining.learning_rate,
        eval_strategy="no",
        logging_strategy="epoch",
    )


def _parts(model: InfluenceModel) -> tuple[str, ...]:
    """The trained parts; in style ``text`` no embedding and no head of ours is read."""
    return ("body", "embeddings", "item_head") if model.encoder.style == "token" else ("body",)


@contextmanager
def _trained(model: InfluenceModel, parts: tuple[str, ...]) -> Iterator[None]:
    """Train only ``parts`` of the model; processes wait for the gradients of all trained parts."""
    kept = {id(p) for name in parts for p in getattr(model, name).parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
