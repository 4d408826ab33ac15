"""Semi-supervised: confident predictions of a trained feedback head are labels of the next model.

Self-training (Lee 2013, "Pseudo-label"). Every round trains a model from the same beginning, on the
log's labels and on those that the round before has guessed. A guess is a target alone: it is
never written into the log, so no history shows it. The run's model is that of the round that
answers validation best, the first one, which had no guesses, among them. Each round leaves its
folder in the run's, with its weights and

pseudo_labels/round_0/checkpoints/        what a round that was broken off goes on from
pseudo_labels/round_0/labels.safetensors  the labels and weights that the next round learns from
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
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.base_trainer import last_checkpoint, release
from llm_influence.training.batches import IGNORE, WeightedLabels, WindowCollator, WindowDataset
from llm_influence.training.trainer import InfluenceTrainer, training_arguments
from llm_influence.types import BoolArray, FloatArray
from llm_influence.utils import write_text

PLACE = "pseudo_labels"
LABELS, METRICS = "labels.safetensors", "metrics.json"


def teach(
    config: RunConfig, model: InfluenceModel, split: Split, folder: Path
) -> tuple[WeightedLabels | None, list[dict[str, Any]]]:
    """Train the models of all rounds but the last; ``model`` is put back to where it began.

    Args:
        config: The run; ``config.pseudo_labels`` says how many rounds and how sure.
        model: Ready to be fine-tuned.
        split: Its events of training are guessed; the epoch is chosen on its validation.
        folder: The run's folder.

    Returns:
        What the last model learns from, None where the block is off; and for each round how many
        labels were real and guessed, and the metrics of its model on validation.

    Raises:
        OutputError: The folder cannot be written.
    """
    began = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    found: WeightedLabels | None = None
    notes: list[dict[str, Any]] = []
    for number in range(config.pseudo_labels.rounds):
        place = folder / PLACE / f"round_{number}"
        if not (place / METRICS).is_file():
            _round(config, model, split, place, found)
            _put_back(model, began)
        found = WeightedLabels(**load_file(place / LABELS))
        notes.append(json.loads((place / METRICS).read_text(encoding="utf-8")))
    return found, notes


def keep_best(
    config: RunConfig,
    model: InfluenceModel,
    folder: Path,
    rounds: list[dict[str, Any]],
    validation: Mapping[str, float],
) -> None:
    """Where an earlier round answers validation no worse than the last, its weights are kept.

    Args:
        config: The run; `evaluation.choice` says by which metric.
        model: Trained by the last round; has the weights of the best one afterwards.
        folder: The run's folder.
        rounds: Of `teach`, one or more; each learns from this whether it is ``kept``.
        validation: Metrics of the last round's model on validation.
    """
    name, more_is_better = chosen_metric(config)

    def quality(found: Mapping[str, float | None]) -> float:
        value = found[name]
        return -math.inf if value is None else value if more_is_better else -value

    qualities = [quality(note["validation"]) for note in rounds]
    best = int(np.argmax(qualities))  # the first of equals, which had the fewest guesses
    better = not qualities[best] < quality(validation)
    for number, note in enumerate(rounds):
        note["kept"] = better and number == best
    if better:
        restore_weights(model, folder / PLACE / f"round_{best}")


def _round(
    config: RunConfig,
    model: InfluenceModel,
    split: Split,
    place: Path,
    labels: WeightedLabels | None,
) -> None:
    """Train one model and write down what it is sure of."""
    state, asked = PartialState(), config.model.feedback_head
    arguments = training_arguments(config, place, state.num_processes)
    trainer = InfluenceTrainer(config, model, split, arguments, labels)
    trainer.train(resume_from_checkpoint=last_checkpoint(place / "checkpoints"))
    validation = trainer.measure(split.validation)
    release(trainer)
    if state.is_main_process:
        model.save_pretrained(place, with_backbone=False)
    odds = feedback_of_events(model, split.train, batch_size=config.evaluation.batch_size)
    real = feedback_labels(split.train, asked)
    guessed = confident(model, split.train, real, odds, config.pseudo_labels)
    known = weighted(real, odds, guessed, asked, config.pseudo_labels)
    if state.is_main_process:
        save_file({"labels": known.labels, "weights": known.weights}, place / LABELS)
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
    """(N,) log-odds of a positive label of every event of a log, given what came before it."""
    windows = WindowDataset(log, model.encoder).windows
    collator = WindowCollator(log, model.encoder, when=model.config.when)
    odds = np.full(log.num_events, np.nan)
    with inference(model):
        for start in range(0, len(windows), batch_size):
            part = windows[start : start + batch_size]
            inputs = {name: column.to(model.device) for name, column in collator(part).items()}
            first = log.offsets[[w.user for w in part]]
            spans = [f + np.arange(w.start, w.stop + 1) for f, w in zip(first, part, strict=True)]
            # the first event of a window is the last of the one before it, which comes later here
            odds[np.concatenate(spans)] = _asked(model, **inputs).double().cpu().numpy()
    return odds


def _asked(
    model: InfluenceModel,
    labels: Tensor,
    behavior_labels: Tensor,
    query_time: Tensor,
    label_when: Tensor | None = None,
    **inputs: Tensor,
) -> Tensor:
    known = labels != IGNORE
    batch = EncodedBatch(**inputs)
    states = torch.take_along_dim(model.states(batch), query_time[..., None], dim=1)
    states = model.remember(states, batch, query_time)[known]
    if label_when is not None:
        states = model.asked(states, label_when[known])
    return model.feedback(states, labels[known], behavior_labels[known])


def confident(
    model: InfluenceModel,
    log: BehaviorLog,
    real: FloatArray,
    odds: FloatArray,
    config: PseudoLabelsConfig,
) -> BoolArray:
    """(N,) bool, the events without a label that the model is sure of.

    Behaviours that never have a label in training are not guessed: nobody is asked about them.
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
    """Real labels and guessed ones, which count ``config.weight`` of a real one.

    Weights are scaled, so that feedback as a whole counts as it does without guesses.
    """
    positive = feedback.positive_from
    guess = np.where(odds > 0, positive, positive - 1)
    labels = np.where(guessed, guess, real).astype(np.float32)
    weights = np.where(guessed, config.weight, ~np.isnan(real))
    weights = weights * (np.mean(~np.isnan(real)) / weights.mean())
    return WeightedLabels(labels, weights.astype(np.float32))


def _put_back(model: InfluenceModel, began: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in began.items():
            own[name].copy_(tensor)
