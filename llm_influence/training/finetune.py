"""One fine-tuning run: data, model, pretraining, training, test, and the model folder."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from transformers import TrainerCallback

from llm_influence.config.run import RunConfig
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.public import open_data
from llm_influence.errors import OutputError
from llm_influence.evaluation.evaluate import by_head, chosen_metric
from llm_influence.evaluation.metrics import protocol
from llm_influence.evaluation.shift import removal_shift
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training import pretrain as pretraining
from llm_influence.training import pseudo_labels
from llm_influence.training.base_trainer import last_checkpoint
from llm_influence.training.pretrain import pretrain
from llm_influence.training.pseudo_labels import keep_best, teach
from llm_influence.training.trainer import InfluenceTrainer, training_arguments
from llm_influence.utils import distributed, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The result of a run.

    Attributes:
        folder: The model folder.
        validation: Validation metrics of the chosen epoch, of all trained heads: ``ndcg@10``,
            ``feedback_auc``, ``behavior_accuracy`` and so on (`head_metrics`).
        test: Test metrics of the same model, measured once; None if test was skipped.
        seconds: Wall-clock seconds of training, validations included.
        build_seconds: Wall-clock seconds of building the model: the split, the fit of the memory,
            the backbone and the text vectors.
    """

    folder: Path
    validation: dict[str, float]
    test: dict[str, float] | None
    seconds: float
    build_seconds: float = 0.0


@distributed()
def finetune(
    config: RunConfig,
    *,
    resume: bool = False,
    measure_test: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    cache: Path | None = None,
) -> FinetuneResult:
    """Fine-tune a model and write its folder, ``config.output``.

    With a ``pretraining`` section the model first learns from the log without labels. With a
    ``pseudo_labels`` section earlier models label events for this one. Validation chooses the
    epoch; test is measured once, with that epoch's model. Under ``accelerate launch`` or
    ``torchrun`` the run uses all processes and ends their group (`distributed`).

    Args:
        config: The run.
        resume: Continue from the last checkpoint in the folder, if there is one.
        measure_test: False hides the test examples from training and evaluation. The folder holds
            the whole split in any case.
        callbacks: More callbacks for the trainer.
        cache: Folder for the text vectors of items, to share them between runs; default: inside
            the run's folder.

    Raises:
        OutputError: The folder holds a run and ``resume`` is False, or it cannot be written.
        DataError, TemplateError, ModelError, AssetError, ConfigError: See the parts of a run.
    """
    chosen_metric(config)  # a wrong choice fails before anything is read
    folder, state = Path(config.output), PartialState()
    checkpoint = checkpoint_of(folder, resume=resume)
    with state.main_process_first():  # one process downloads
        data = open_data(config.data)
        begun = time.perf_counter()
        split = split_log(data, config.data.split)
        model = InfluenceModel.build(config, split.train, cache=cache or folder / "text_vectors")
    build_seconds = time.perf_counter() - begun
    if state.is_main_process:
        start_folder(folder, config, split)
    split = split if measure_test else split.without_test()
    pretrained = pretrain(config, model, split.train, folder)
    pseudo, rounds = teach(config, model, split, folder)
    arguments = training_arguments(config, folder, state.num_processes)
    # the memory is fitted already: the first validation says how far it gets without training
    arguments.eval_on_start = model.item_head.memory is not None and checkpoint is None
    trainer = InfluenceTrainer(config, model, split, arguments, pseudo)
    for callback in callbacks:
        trainer.add_callback(callback)
    begun = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    if rounds:
        keep_best(config, model, folder, rounds, trainer.measure(split.validation))
    seconds = time.perf_counter() - begun
    result = FinetuneResult(
        folder=folder,
        validation=trainer.measure(split.validation),
        test=trainer.measure(split.test) if measure_test else None,
        seconds=seconds,
        build_seconds=build_seconds,
    )
    if state.is_main_process:
        sections = {"pretraining": pretrained, "pseudo_labels": rounds}
        more = {name: metrics for name, metrics in sections.items() if metrics}
        finish_folder(result, config, split, model, trainer.state.log_history, more)
    state.wait_for_everyone()
    return result


def checkpoint_of(folder: Path, *, resume: bool) -> str | None:
    """The newest complete checkpoint of a run; None without one.

    Raises:
        OutputError: The folder holds a run and ``resume`` is False.
    """
    checkpoint = last_checkpoint(folder / "checkpoints")
    traces = ("model.json", pretraining.PLACE, pseudo_labels.PLACE)
    if (checkpoint or any((folder / name).exists() for name in traces)) and not resume:
        raise OutputError(
            "the folder holds a run already",
            where=str(folder),
            expected="an empty folder, or --resume",
            fix="choose another --output, or pass --resume to continue this run",
        )
    return checkpoint


def start_folder(folder: Path, config: RunConfig, split: Split) -> None:
    """Write the configuration and the whole split, before training."""
    config.save(folder / "run.yaml")
    split.save(folder / "split")


def _grouped(metrics: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Metrics by head for JSON; undefined values are None."""
    return {
        head: {name: None if math.isnan(value) else value for name, value in group.items()}
        for head, group in by_head(metrics).items()
    }


def shift_of(
    config: RunConfig, model: InfluenceModel, rows: EvaluationSet
) -> dict[str, float | None] | None:
    """`removal_shift` of a few validation users; None if it is off or no items are predicted."""
    most = config.evaluation.shift_users
    if not most or not config.model.item_head.weight:
        return None
    drawn = np.random.default_rng(config.train.seed).permutation(len(rows))[:most]
    measured = removal_shift(model, [rows.history(int(row)) for row in drawn])
    values = {"shift": measured.shift, "opposed": measured.opposed}
    known = {name: None if math.isnan(value) else value for name, value in values.items()}
    return known | {"users": len(measured.mean)}


def finish_folder(
    result: FinetuneResult,
    config: RunConfig,
    split: Split,
    model: InfluenceModel,
    history: list[dict[str, float]],
    more: Mapping[str, object] | None = None,
) -> None:
    """Write the model and ``metrics.json``, with ``more`` sections in it."""
    test = None if result.test is None else _grouped(result.test)
    described = {
        "data": config.data.source,
        "split": split.description,
        "test": protocol(split.test, config.evaluation),
        **({"rules": [rule.name for rule in model.rules]} if model.rules else {}),
    }
    shift = shift_of(config, model, split.validation)
    card = {"metrics": test, "shift": shift}
    model.protocol |= described | {name: value for name, value in card.items() if value is not None}
    model.save_pretrained(result.folder)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    metrics = {
        "validation": _grouped(result.validation),
        "test": test,
        "removal_shift": shift,
        "protocol": described,
        "seconds": result.seconds,
        "build_seconds": result.build_seconds,
        "trainable_parameters": trained,
        "history": history,
        **(more or {}),
    }
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    write_text(result.folder / "metrics.json", text)
    logger.info("model folder: %s", result.folder)
