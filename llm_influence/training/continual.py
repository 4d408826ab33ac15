"""Windows of a continual fine-tuning: what is new, and a share of what the model knew before.

Training on new events alone moves a model away from what it learned (catastrophic forgetting,
McCloskey & Cohen 1989); reading some of the old ones again holds it there (rehearsal, Robins 1995;
experience replay in Rolnick et al. 2019, arXiv:1811.11682).

A continual fine-tuning: a finished run goes on with the newest events, and is told again of the old ones.

The weights, the vocabulary and the catalogue are the run's; new items join by their text. What is
measured is measured twice, before training and after it, on examples of the old period and of the
new one: the first says what was forgotten, the second what was gained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from accelerate import PartialState

from llm_influence.config.run import RunConfig
from llm_influence.data.holdouts import Periods, part_periods
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split, moment_of
from llm_influence.datasets.sources import open_data
from llm_influence.errors import ConfigError, DataError
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.vocabulary import MOST_DISTINCT_VALUES
from llm_influence.training.batches import Window, WindowDataset
from llm_influence.training.finetune import (
    FinetuneResult,
    checkpoint_of,
    finish_folder,
    start_folder,
)
from llm_influence.training.trainer import InfluenceTrainer, training_arguments
from llm_influence.types import IntArray


class ReplayWindows(WindowDataset):
    """Windows in which the newest events are taught, and old windows drawn beside them.

    A new window has old events as context; they are no labels there. Old windows are cut from the
    events that the model was trained on, as its own training cut them, and drawn once.

    Args:
        log: Events of training, old and new.
        encoder: Says how many events fit.
        known: (U,) how many of each user's first events are old.
        trained: (U,) how many of them trained the model; the others were kept back to measure it.
        share: Of all windows that are old, in [0, 1]: 0 draws none, 1 takes all there are.
        seed: Of the draw.

    Attributes:
        new: How many windows teach new events.
        replayed: How many are old.
    """

    def __init__(
        self,
        log: BehaviorLog,
        encoder: Encoder,
        *,
        known: IntArray,
        trained: IntArray,
        share: float,
        seed: int,
    ) -> None:
        super().__init__(log, encoder)
        new = [
            replace(window, taught=int(known[window.user]))
            for window in self.windows
            if window.stop >= known[window.user]
        ]
        old = _old_windows(log, encoder, trained) if share else []
        wanted = len(old) if share == 1 else round(len(new) * share / (1 - share))
        drawn = np.random.default_rng(seed).permutation(len(old))[:wanted]
        self.new, self.replayed = len(new), len(drawn)
        self.windows = new + [old[place] for place in np.sort(drawn)]


def _old_windows(log: BehaviorLog, encoder: Encoder, trained: IntArray) -> list[Window]:
    """All windows of the model's own training, with the users' numbers in ``log``."""
    old = log.prefix(trained)
    users = pc.index_in(old.user_ids, value_set=log.user_ids).to_numpy()
    windows = WindowDataset(old, encoder).windows
    return [replace(window, user=int(users[window.user])) for window in windows]


Metrics = dict[str, float]

KEPT = ("model", "rendering")
"""Sections that the weights were made for: an update cannot change them."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What an update made, and what it cost and gained.

    Attributes:
        folder: The new run folder.
        old: Metrics on the old period's examples, ``before`` and ``after``.
        new: The same on the new period's test examples.
        windows: How many windows of an epoch were ``new`` and how many ``replayed``.
        seconds: Wall-clock seconds of training, validations included.
    """

    folder: Path
    old: dict[str, Metrics]
    new: dict[str, Metrics]
    windows: dict[str, int]
    seconds: float

    def to_text(self) -> str:
        """A line a metric and period, before, after and the difference."""
        lines = [f"{'period':<8}{'metric':<12}{'before':>9}{'after':>9}{'change':>9}"]
        for period, found in (("old", self.old), ("new", self.new)):
            for name, before in found["before"].items():
                after = found["after"][name]
                shown = f"{before:>9.4f}{after:>9.4f}{after - before:>+9.4f}"
                lines.append(f"{period:<8}{name:<12}{shown}")
        return "\n".join(lines)


def update_config(
    model: Path,
    output: Path,
    *,
    log: str | None = None,
    items: str | None = None,
    users: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The configuration of an update: the run's own, another output, the newer log, overrides.

    Args:
        model: The run's folder.
        output: The new folder.
        log: The newer log; None: the run's own one goes on behind ``update.since``.
        items: Item table that goes with it.
        users: User table that goes with it.
        overrides: Dotted options, as `RunConfig.load` takes them.

    Raises:
        ConfigError: An option is wrong, or changes what the weights were made for (`KEPT`).
    """
    own, config = (RunConfig.load(model / "run.yaml", words) for words in ((), overrides))
    for section in KEPT:
        if getattr(config, section) != getattr(own, section):
            raise ConfigError(
                f"an option of {section} is changed",
                where="llm-influence update",
                expected=f"the {section} of the run, which its weights were made for",
                fix="remove the option, or fine-tune a new run",
            )
    data = config.data
    if log is not None:
        data = data.model_copy(update={"source": log, "items": items, "users": users})
    return config.model_copy(update={"output": str(output), "data": data})


def open_newer(config: RunConfig) -> BehaviorLog:
    """The newer log that `update_config` named, read by the run's own column names.

    Raises:
        DataError: It cannot be read.
    """
    return open_data(config.data)


def update(
    model: Path, config: RunConfig, newer: BehaviorLog | None = None, *, resume: bool = False
) -> UpdateResult:
    """Train a finished run on, and write the new run folder ``config.output``.

    Each epoch reads every window that ends in the new period, whose new events alone are labels,
    and a fixed draw of the windows that the run was trained on (`ReplayWindows`). The epoch is
    chosen on the new period's validation examples.

    Args:
        model: The run's folder.
        config: Made by `update_config`. ``train`` is that of the update, ``update`` says what is
            new and how much is replayed, ``data.split`` cuts the whole log for the new period.
        newer: A log that goes on where the run's ends; default: the run's own one, cut by
            ``update.since``.
        resume: Go on from the last checkpoint in the folder, if there is one.

    Raises:
        OutputError: The new folder holds a run, and ``resume`` was not asked for.
        UnknownNameError: A behaviour of the new period is not known to the run.
        DataError: The run has seen the new period, a new item has no text, a value is none of the
            run's ratings, or a period has nothing to train on or to measure.
        ModelError: There are new items, and the backbone itself was tuned (``full``).
    """
    folder, state = Path(config.output), PartialState(cpu=on_cpu())
    checkpoint = checkpoint_of(folder, resume=resume)
    warm = InfluenceModel.from_pretrained(model).to(state.device)
    periods = _periods(warm, Split.load(model / "split", warm.catalogue), config, newer)
    prepare(warm, periods)
    warm.rules = config.rules
    if state.is_main_process:
        start_folder(folder, config, periods.split)
    trainer = update_trainer(warm, periods, config, share=config.update.replay)
    before = measure_periods(trainer, periods)
    begun = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - begun
    after = measure_periods(trainer, periods)
    validation = trainer.measure(periods.split.validation)
    windows: ReplayWindows = trainer.train_dataset
    result = UpdateResult(
        folder=folder,
        old={"before": before["old"], "after": after["old"]},
        new={"before": before["new"], "after": after["new"]},
        windows={"new": windows.new, "replayed": windows.replayed},
        seconds=seconds,
    )
    if state.is_main_process:
        finish_folder(
            FinetuneResult(folder, validation, after["new"], seconds),
            config,
            periods.split,
            warm,
            trainer.state.log_history,
            more={"update": _facts(result, periods, model)},
        )
    state.wait_for_everyone()
    return result


def prepare(model: InfluenceModel, periods: Periods) -> None:
    """Let new items join by their text, and count the events that train (`Vocabulary.counts`)."""
    if len(periods.added):
        model.add_items(periods.added)
    items = len(model.catalogue)
    vocabulary = replace(
        model.encoder.vocabulary, counts=np.bincount(periods.split.train.items, minlength=items)
    )
    model.encoder = model.encoder.with_vocabulary(vocabulary)


def update_trainer(
    model: InfluenceModel, periods: Periods, config: RunConfig, *, share: float
) -> InfluenceTrainer:
    """A trainer on the new windows and a share of old ones; 1 takes all old ones there are."""
    windows = ReplayWindows(
        periods.split.train,
        model.encoder,
        known=periods.known,
        trained=periods.trained,
        share=share,
        seed=config.train.seed,
    )
    processes = PartialState(cpu=on_cpu()).num_processes
    arguments = training_arguments(config, Path(config.output), processes)
    return InfluenceTrainer(config, model, periods.split, args=arguments, windows=windows)


def measure_periods(trainer: InfluenceTrainer, periods: Periods) -> dict[str, Metrics]:
    """Metrics on the ``old`` period's examples and the ``new`` one's test examples."""
    parts = {"old": periods.old, "new": periods.split.test}
    return {name: trainer.measure(rows) for name, rows in parts.items()}


def _periods(
    model: InfluenceModel, before: Split, config: RunConfig, newer: BehaviorLog | None
) -> Periods:
    cut = config.update.since
    since = None if cut is None else moment_of(cut, before.log, "update.since")
    described = newer is None or config.data.items is not None
    periods = part_periods(before, newer, since, config.data.split, described=described)
    _check_values(model, before.train, periods)
    return periods


def _check_values(model: InfluenceModel, train: BehaviorLog, periods: Periods) -> None:
    """Refuse a value that the model has no word for.

    Where training had few distinct values (ratings) each has its word; amounts fall into bins.
    """
    if len(np.unique(train.values[~np.isnan(train.values)])) > MOST_DISTINCT_VALUES:
        return
    log, known = periods.split.log, model.encoder.vocabulary.values.edges
    fresh = (log.timestamps >= periods.since) & ~np.isnan(log.values)
    strange = fresh & ~np.isin(log.values, known)
    if strange.any():
        event = int(np.argmax(strange))
        user = log.user_ids[int(log.rows_of_users()[event])].as_py()
        item = log.catalogue.ids[int(log.items[event])].as_py()
        raise DataError(
            f"value {log.values[event]:g} is none that the run was trained on",
            where=f"user {user!r}, item {item!r}",
            expected=", ".join(f"{value:g}" for value in known) or "events without a value",
            fix="bring the values to the run's scale or leave them out, or fine-tune a new run",
        )


def _facts(result: UpdateResult, periods: Periods, model: Path) -> dict[str, object]:
    return {
        "from": str(model),
        "since": periods.split.description["new_since"],
        "windows": result.windows,
        "new_items": len(periods.added),
        "old_period": {"rows": len(periods.old), **result.old},
        "new_period": {"rows": len(periods.split.test), **result.new},
    }
