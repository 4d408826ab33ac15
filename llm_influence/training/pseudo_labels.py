"""Pseudo-labels: confident predictions of a trained feedback head are labels of the next model.

Self-training (Lee 2013, "Pseudo-label"). Every round trains a model from the same start, on the
log's labels and on those that the round before has predicted. A pseudo-label is only a target: it
never enters the log, so no history contains it. The run keeps the model of the round with the best
validation; the first round has no pseudo-labels. Each round leaves a folder in the run's:

pseudo_labels/round_0/checkpoints/        to resume a round
pseudo_labels/round_0/labels.safetensors  the labels and weights for the next round
pseudo_labels/round_0/metrics.json        written last: with it, the round is finished
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.numpy import load_file, save_file
from torch import Tensor

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import PseudoLabelsConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split, feedback_labels
from llm_influence.evaluation.evaluate import chosen_metric
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from llm_influence.training.base_trainer import last_checkpoint, release
from llm_influence.training.batches import (
    IGNORE,
    Inputs,
    WeightedLabels,
    WindowCollator,
    WindowDataset,
    encoded_batch,
)
from llm_influence.training.trainer import InfluenceTrainer, training_arguments
from llm_influence.types import BoolArray, FloatArray
from llm_influence.utils import write_text

PLACE = "pseudo_labels"
LABELS, METRICS = "labels.safetensors", "metrics.json"


def teach(
    config: RunConfig, model: InfluenceModel, split: Split, folder: Path
) -> tuple[WeightedLabels | None, list[dict[str, Any]]]:
    """Train the models of all rounds but the last, each from the same start.

    Args:
        config: The run; ``config.pseudo_labels`` has the number of rounds and the threshold.
        model: Ready for fine-tuning; it has its initial weights again afterwards.
        split: Its training events get pseudo-labels; its validation chooses the epoch.
        folder: The run's folder.

    Returns:
        The labels for the last model, None without rounds; and for each round the numbers of real
        and of pseudo-labels, and validation metrics.
    """
    initial = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    labels: WeightedLabels | None = None
    rounds: list[dict[str, Any]] = []
    for number in range(config.pseudo_labels.rounds):
        place = folder / PLACE / f"round_{number}"
        if not (place / METRICS).is_file():
            _round(config, model, split, place, labels)
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, tensor in initial.items():
                    parameters[name].copy_(tensor)
        labels = WeightedLabels(**load_file(place / LABELS))
        rounds.append(json.loads((place / METRICS).read_text(encoding="utf-8")))
    return labels, rounds


def keep_best(
    config: RunConfig,
    model: InfluenceModel,
    folder: Path,
    rounds: list[dict[str, Any]],
    validation: Mapping[str, float],
) -> None:
    """Restore the weights of an earlier round if its validation is no worse than the last one's.

    Args:
        config: The run; `chosen_metric` gives the metric.
        model: Trained by the last round; it has the weights of the best round afterwards.
        folder: The run's folder.
        rounds: Of `teach`, at least one; the key ``kept`` is added to each.
        validation: Validation metrics of the last round's model.
    """
    name, more_is_better = chosen_metric(config)

    def quality(metrics: Mapping[str, float | None]) -> float:
        value = metrics[name]
        return -math.inf if value is None else value if more_is_better else -value

    qualities = [quality(metrics["validation"]) for metrics in rounds]
    best = int(np.argmax(qualities))  # the first of equals, which had the fewest pseudo-labels
    restore = not qualities[best] < quality(validation)
    for number, metrics in enumerate(rounds):
        metrics["kept"] = restore and number == best
    if restore:
        restore_weights(model.parts, folder / PLACE / f"round_{best}")


def _round(
    config: RunConfig,
    model: InfluenceModel,
    split: Split,
    place: Path,
    labels: WeightedLabels | None,
) -> None:
    """Train the model of one round and write its pseudo-labels."""
    state, head = PartialState(), config.model.feedback_head
    arguments = training_arguments(config, place, state.num_processes)
    trainer = InfluenceTrainer(config, model, split, arguments, labels)
    trainer.train(resume_from_checkpoint=last_checkpoint(place / "checkpoints"))
    validation = trainer.measure(split.validation)
    release(trainer)
    if state.is_main_process:
        model.save_pretrained(place, with_backbone=False)
    odds = feedback_of_events(model, split.train, batch_size=config.evaluation.batch_size)
    real = feedback_labels(split.train, head)
    guessed = confident(model, split.train, real, odds, config.pseudo_labels)
    learned = weighted(real, odds, guessed, head, config.pseudo_labels)
    if state.is_main_process:
        save_file({"labels": learned.labels, "weights": learned.weights}, place / LABELS)
        metrics = {
            "labels": int((~np.isnan(real)).sum()),
            "guessed": int(guessed.sum()),
            "guessed_positive": int((odds[guessed] > 0).sum()),
            "validation": {n: None if math.isnan(v) else v for n, v in validation.items()},
        }
        write_text(place / METRICS, json.dumps(metrics, indent=2) + "\n")
    state.wait_for_everyone()


def feedback_of_events(
    model: InfluenceModel, log: BehaviorLog, *, batch_size: int = 64
) -> FloatArray:
    """(N,) log-odds of a positive label of every event of a log, given the events before it."""
    from_end = model.config.positions == "end"  # positions differ for every prefix
    windows = WindowDataset(log, model.encoder, prefixes=from_end).windows
    collator = WindowCollator(log, model.encoder, when=model.config.when)
    odds = np.full(log.num_events, np.nan)
    with inference(model):
        for start in range(0, len(windows), batch_size):
            part = windows[start : start + batch_size]
            inputs = {name: column.to(model.device) for name, column in collator(part).items()}
            first = log.offsets[[w.user for w in part]]
            spans = [
                f + np.arange(w.stop if w.last_only else w.start, w.stop + 1)
                for f, w in zip(first, part, strict=True)
            ]
            # an event in two windows keeps the value of the older window, which comes later here
            odds[np.concatenate(spans)] = _log_odds(model, inputs).double().cpu().numpy()
    return odds


def _log_odds(model: InfluenceModel, inputs: Inputs) -> Tensor:
    """(N,) log-odds at the N labels of a batch of windows."""
    known = inputs["labels"] != IGNORE
    states = model.query_at(encoded_batch(inputs), inputs["query_time"])[known]
    if "label_when" in inputs:
        states = model.at_time(states, inputs["label_when"][known])
    return model.feedback(states, inputs["labels"][known], inputs["behavior_labels"][known])


def confident(
    model: InfluenceModel,
    log: BehaviorLog,
    real: FloatArray,
    odds: FloatArray,
    config: PseudoLabelsConfig,
) -> BoolArray:
    """(N,) bool, the events without a label whose prediction exceeds the threshold.

    Behaviours without any label in training get no pseudo-labels.
    """
    names = model.trained_feedback.scale.behaviors
    codes = [log.code_names.behaviors.index(name) for name in names]
    sure = np.abs(odds) >= math.log(config.threshold / (1 - config.threshold))
    return np.isnan(real) & np.isin(log.behaviors, codes) & sure


def weighted(
    real: FloatArray,
    odds: FloatArray,
    guessed: BoolArray,
    feedback: FeedbackHeadConfig,
    config: PseudoLabelsConfig,
) -> WeightedLabels:
    """Real labels, and pseudo-labels with ``config.weight`` times the weight of a real one.

    The weights are scaled, so that pseudo-labels do not change the weight of feedback as a whole.
    """
    positive = feedback.positive_from
    guess = np.where(odds > 0, positive, positive - 1)
    labels = np.where(guessed, guess, real).astype(np.float32)
    weights = np.where(guessed, config.weight, ~np.isnan(real))
    weights = weights * (np.mean(~np.isnan(real)) / weights.mean())
    return WeightedLabels(labels, weights.astype(np.float32))
