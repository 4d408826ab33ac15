"""Training for benchmarks that may look at validation alone: the test split is never asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import TrainerCallback

from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.pretrain import pretrain
from llm_influence.training.pseudo_labels import keep_best, teach
from llm_influence.training.trainer import InfluenceTrainer, training_arguments


def train(
    config: RunConfig,
    split: Split,
    callbacks: Sequence[TrainerCallback] = (),
    prepare: Callable[[InfluenceModel], None] | None = None,
) -> InfluenceTrainer:
    """Fine-tune in this process; the trainer comes back with the best epoch's weights.

    ``prepare`` may change the model before it is trained, for what no configuration says.
    """
    cache = Path(config.output).parent / "text_vectors"  # shared by runs that stand side by side
    model = InfluenceModel.build(config, split.train, cache=cache)
    if prepare is not None:
        prepare(model)
    pretrain(config, model, split.train, Path(config.output))
    pseudo, rounds = teach(config, model, split, Path(config.output))
    arguments = training_arguments(config, Path(config.output), world_size=1)
    trainer = InfluenceTrainer(config, model, split, arguments, pseudo)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    if rounds:
        validation = trainer.measure(split.validation)
        keep_best(config, model, Path(config.output), rounds, validation)
    return trainer
