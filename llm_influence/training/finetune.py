"""One fine-tuning run: data, model, training, test, model folder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from llm_influence.config import RunConfig
from llm_influence.data.sources import open_data
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.errors import OutputError
from llm_influence.evaluation.ranking import protocol, ranking_metrics
from llm_influence.files import write_text
from llm_influence.modeling.devices import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.trainer import InfluenceTrainer, training_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a run made.

    Attributes:
        folder: The model folder.
        validation: Metrics of the chosen epoch on validation.
        test: Metrics of the same model on test, measured once; None where it was left out.
        seconds: Wall-clock seconds of training, validations included.
    """

    folder: Path
    validation: dict[str, float]
    test: dict[str, float] | None
    seconds: float


def finetune(
    config: RunConfig,
    *,
    resume: bool = False,
    measure_test: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    cache: Path | None = None,
) -> FinetuneResult:
    """Fine-tune as ``config`` says and write the model folder ``config.output``.

    The epoch is chosen on validation; test is measured once, with that epoch's model. Runs under
    ``accelerate launch`` or ``torchrun`` on any number of processes.

    Args:
        config: The run.
        resume: Go on from the last checkpoint in the folder, if there is one.
        measure_test: False leaves the test split unread: what trains and measures the model is
            given a split without test questions. The folder holds the whole split all the same.
        callbacks: More of them for the trainer.
        cache: Folder of the items' text vectors, for runs that share them; default: in the run's.

    Raises:
        OutputError: The folder holds another run and ``resume`` was not asked for, or it cannot
            be written.
        DataError, TemplateError, ModelError, AssetError, ConfigError: see the parts.
    """
    folder, state = Path(config.output), PartialState(cpu=on_cpu())
    checkpoint = last_checkpoint(folder, resume=resume)
    with state.main_process_first():  # one process fetches what has to be fetched
        split = split_log(open_data(config.data), config.data.split)
        model = InfluenceModel.build(config, split.train, cache=cache or folder / "text_vectors")
    if state.is_main_process:
        start_folder(folder, config, split)
    split = split if measure_test else split.without_test()
    trainer = InfluenceTrainer(
        config, model, split, args=training_arguments(config, folder, state.num_processes)
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    begun = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - begun
    result = FinetuneResult(
        folder=folder,
        validation=measure(trainer, split.validation, config),
        test=measure(trainer, split.test, config) if measure_test else None,
        seconds=seconds,
    )
    if state.is_main_process:
        finish_folder(result, config, split, model, trainer.state.log_history)
    state.wait_for_everyone()
    return result


def last_checkpoint(folder: Path, *, resume: bool) -> str | None:
    """The newest checkpoint; one that was cut short lacks the state, which is written last.

    Raises:
        OutputError: The folder holds a run and ``resume`` was not asked for.
    """
    whole = (folder / "checkpoints").glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    step = {path.parent: int(path.parent.name.split("-")[1]) for path in whole}
    found = str(max(step, key=step.__getitem__)) if step else None
    if (found or (folder / "model.json").exists()) and not resume:
        raise OutputError(
            "the folder holds a run already",
            where=str(folder),
            expected="a new folder, or the wish to go on",
            fix="choose another --output, or pass --resume to go on with this run",
        )
    return found


def start_folder(folder: Path, config: RunConfig, split: Split) -> None:
    """Write what is known before training: the configuration and the whole split."""
    config.save(folder / "run.yaml")
    split.save(folder / "split")


def measure(trainer: InfluenceTrainer, rows: EvaluationSet, config: RunConfig) -> dict[str, float]:
    """Metrics of the trainer's model on some questions."""
    return ranking_metrics(trainer.ranks(rows), config.evaluation.cutoff)


def finish_folder(
    result: FinetuneResult,
    config: RunConfig,
    split: Split,
    model: InfluenceModel,
    history: list[dict[str, float]],
    more: Mapping[str, object] | None = None,
) -> None:
    """Write the model and its metrics; ``more`` is put beside them in ``metrics.json``."""
    model.protocol = {
        "data": config.data.source,
        "split": split.description,
        "test": protocol(split.test, config.evaluation),
    }
    model.save_pretrained(result.folder)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    metrics = {
        "validation": result.validation,
        "test": result.test,
        "protocol": model.protocol,
        "seconds": result.seconds,
        "trainable_parameters": trained,
        "history": history,
        **(more or {}),
    }
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    write_text(result.folder / "metrics.json", text)
    logger.info("model folder: %s", result.folder)
