"""Training inside benchmark programs: on a split without its test part, or on a whole log."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, TrainerCallback

from benchmarks.harness import Row
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.public import open_data
from llm_influence.evaluation.metrics import ModelRecommender, evaluate, seen_items, target_ranks
from llm_influence.modeling.model import InfluenceModel
from llm_influence.numerics import bootstrap_interval
from llm_influence.training.pretrain import pretrain
from llm_influence.training.pseudo_labels import keep_best, teach
from llm_influence.training.trainer import InfluenceTrainer, training_arguments

MOVIELENS = Path("configs/movielens_100k.yaml")


def open_log(config: RunConfig, users: int | None = None) -> BehaviorLog:
    """The log of a configuration; ``users``: the first so many only, for a trial."""
    log = open_data(config.data)
    return log if users is None else log.select(log.user_ids[:users].to_pylist())


def open_split(config: RunConfig, users: int | None = None) -> Split:
    """The log of a configuration, split as it says."""
    return split_log(open_log(config, users), config.data.split)


def train(
    config: RunConfig,
    split: Split,
    callbacks: Sequence[TrainerCallback] = (),
    prepare: Callable[[InfluenceModel], None] | None = None,
) -> InfluenceTrainer:
    """Fine-tune without the test split; the trainer has the best epoch's weights.

    Args:
        config: The run.
        split: Its task.
        callbacks: Of the trainer.
        prepare: Changes the model before training, for what no configuration can say.
    """
    output = Path(config.output)
    cache = output.parent / "text_vectors"  # shared by runs with the same parent folder
    model = InfluenceModel.build(config, split.train, cache=cache)
    if prepare is not None:
        prepare(model)
    pretrain(config, model, split.train, output)
    pseudo, rounds = teach(config, model, split, output)
    arguments = training_arguments(config, output, world_size=1)
    trainer = InfluenceTrainer(config, model, split, arguments, pseudo)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    if rounds:
        keep_best(config, model, output, rounds, trainer.measure(split.validation))
    return trainer


def trained_once(config: RunConfig, split: Split, *, with_backbone: bool = True) -> InfluenceModel:
    """The fine-tuned model in the run's folder, trained unless it is there."""
    place = Path(config.output) / "model"
    if not (place / "model.json").exists():  # which is written last
        model = train(config, split).influence_model
        model.save_pretrained(place, with_backbone=with_backbone)
    return InfluenceModel.from_pretrained(place)


def measure_on_validation(
    config: RunConfig, split: Split, prepare: Callable[[InfluenceModel], None] | None = None
) -> dict[str, object]:
    """Train one setting: ranks and negative log-likelihoods of the true items, and seconds."""
    shutil.rmtree(config.output, ignore_errors=True)
    begun = time.perf_counter()
    model = train(config, split, prepare=prepare).influence_model
    seconds = time.perf_counter() - begun
    ranks, nll = validated(model, split.validation)
    shutil.rmtree(config.output)
    return {"ranks": ranks.tolist(), "nll": nll.tolist(), "seconds": seconds}


def validated(model: InfluenceModel, rows: EvaluationSet) -> tuple[np.ndarray, np.ndarray]:
    """(N,) ranks and (N,) negative log-likelihoods of the true items."""
    histories = [rows.history(row) for row in range(len(rows))]
    targets = torch.from_numpy(rows.target_items.astype(np.int64))
    ranks, nll = [], []
    for part, prediction in model.predict(histories):
        logits = prediction.item_logits.float().cpu()
        seen = seen_items([history.items for history in histories[part]])
        ranks.append(target_ranks(logits, targets[part], seen))
        nll.append(F.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(ranks).numpy(), torch.cat(nll).numpy()


def ranks_of(model: InfluenceModel, rows: EvaluationSet, config: RunConfig) -> np.ndarray:
    """(N,) ranks of the true items among all items, by the protocol of the run."""
    return evaluate(ModelRecommender(model), rows, config.evaluation)[1]


def with_interval(values: np.ndarray, users: np.ndarray, prefix: str = "") -> Row:
    """Mean with its 95% interval over users, as columns of a row."""
    names = (prefix, f"{prefix}_low", f"{prefix}_high") if prefix else ("value", "low", "high")
    ends = bootstrap_interval(values, users)
    return dict(zip(names, (float(values.mean()), *ends), strict=True))


# --- whole logs --------------------------------------------------------------------------------


def small_config(output: Path, seed: int, **sections: dict[str, object]) -> RunConfig:
    """A small model of which everything is trained, for generated logs; one token an event.

    Args:
        output: Folder of the run.
        seed: Of training.
        sections: Options put over those of here, by section.
    """
    tree: dict[str, dict[str, object]] = {
        "rendering": {"template": "fused"},
        "model": {
            "dropout": 0.0,
            "adapter": {"kind": "full"},
            "item_head": {"score": "dot"},
            "behavior_head": {"weight": 0.0},
        },
        "train": {"weight_decay": 0.0, "precision": "fp32", "seed": seed},
        "evaluation": {"exclude_seen": False},
    }
    merged = {name: options | sections.get(name, {}) for name, options in tree.items()}
    return RunConfig.model_validate({"output": str(output), **merged})


def small_gru(
    output: Path, seed: int, *, epochs: float, rate: float = 4e-3, **sections: dict[str, object]
) -> RunConfig:
    """`small_config` of a GRU of width 64."""
    rates = {"epochs": epochs, "learning_rate": rate, "item_learning_rate": rate}
    model = {"backbone": "gru", "recurrent": {"width": 64}} | sections.pop("model", {})
    train_section = rates | {"batch_size": 64} | sections.pop("train", {})
    return small_config(output, seed, model=model, train=train_section, **sections)


def fitted(config: RunConfig, log: BehaviorLog, folder: Path) -> InfluenceModel:
    """The model after the last epoch on a whole log, in ``folder``/model; trained if needed."""
    place = folder / "model"
    if not (place / "model.json").exists():  # which is written last
        model = InfluenceModel.build(config, log)
        train_whole(model, config, log, folder)
        model.save_pretrained(place)
    return InfluenceModel.from_pretrained(place)


def train_whole(model: InfluenceModel, config: RunConfig, log: BehaviorLog, folder: Path) -> None:
    """Train on all of a log, to the last epoch."""
    last = EvaluationSet(log, np.arange(len(log)), log.lengths.astype(np.int64) - 1)
    arguments = training_arguments(config, folder, world_size=1)
    arguments.eval_strategy = arguments.save_strategy = "no"
    arguments.load_best_model_at_end = False
    # The trainer needs examples to choose an epoch by; here none is chosen.
    trainer = InfluenceTrainer(config, model, Split(log, log, last, last, {}), arguments)
    trainer.remove_callback(EarlyStoppingCallback)
    trainer.train()
