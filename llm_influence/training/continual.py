"""Continual fine-tuning: a finished run learns from newer events, with replay of old ones.

Training on new events alone moves a model away from what it learned (catastrophic forgetting,
McCloskey & Cohen 1989). Some old windows in every epoch keep it there (rehearsal, Robins 1995;
experience replay, Rolnick et al. 2019, arXiv:1811.11682). Weights, vocabulary and catalogue are
those of the run; new items join by their text. Metrics are measured before and after, on the old
period (forgetting) and on the new one (gain).
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
from llm_influence.data.holdouts import PeriodSplit, split_periods
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split
from llm_influence.data.times import moment_of
from llm_influence.datasets.public import open_data
from llm_influence.errors import ConfigError, DataError
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
from llm_influence.utils import distributed


class ReplayWindows(WindowDataset):
    """Windows that train on new events, and a sample of old windows.

    A new window has old events as context, which are no labels there. Old windows are those of the
    model's own training. They are drawn once, without replacement.

    Args:
        log: Training events, old and new.
        encoder: Gives the number of events that fit.
        known: (U,) number of old events of each user.
        trained: (U,) number of them that trained the model; the others measured it.
        share: Share of old windows among all, in [0, 1]; 0 takes none, 1 takes all of them.
        seed: Seed of the draw.
        prefixes: Whether every prefix of a history is a window with one label.

    Attributes:
        new: Number of windows with new events.
        replayed: Number of old windows.
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
        prefixes: bool = False,
    ) -> None:
        super().__init__(log, encoder, prefixes=prefixes)
        new = [
            replace(window, first_label=int(known[window.user]))
            for window in self.windows
            if window.stop >= known[window.user]
        ]
        old = _old_windows(log, encoder, trained, prefixes=prefixes) if share else []
        size = len(old) if share == 1 else round(len(new) * share / (1 - share))
        drawn = np.random.default_rng(seed).permutation(len(old))[:size]
        self.new, self.replayed = len(new), len(drawn)
        self.windows = new + [old[place] for place in np.sort(drawn)]


def _old_windows(
    log: BehaviorLog, encoder: Encoder, trained: IntArray, *, prefixes: bool
) -> list[Window]:
    """All windows of the model's own training, with user numbers of ``log``."""
    old = log.prefix(trained)
    users = pc.index_in(old.user_ids, value_set=log.user_ids).to_numpy()
    windows = WindowDataset(old, encoder, prefixes=prefixes).windows
    return [replace(window, user=int(users[window.user])) for window in windows]


Metrics = dict[str, float]

KEPT = ("model", "rendering")
"""Sections that the weights depend on; an update cannot change them."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The result of an update.

    Attributes:
        folder: The new run folder.
        old: Metrics on the old period's test examples, ``before`` and ``after``.
        new: Metrics on the new period's test examples, ``before`` and ``after``.
        windows: Number of ``new`` and of ``replayed`` windows in an epoch.
        seconds: Wall-clock seconds of training, validations included.
    """

    folder: Path
    old: dict[str, Metrics]
    new: dict[str, Metrics]
    windows: dict[str, int]
    seconds: float

    def to_text(self) -> str:
        """One line for each period and metric: before, after, change."""
        lines = [f"{'period':<8}{'metric':<12}{'before':>9}{'after':>9}{'change':>9}"]
        for period, metrics in (("old", self.old), ("new", self.new)):
            for name, before in metrics["before"].items():
                after = metrics["after"][name]
                values = f"{before:>9.4f}{after:>9.4f}{after - before:>+9.4f}"
                lines.append(f"{period:<8}{name:<12}{values}")
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
    """The configuration of an update: that of the run, with a new output, log and overrides.

    Args:
        model: The run's folder.
        output: The new folder.
        log: The newer log; default: the run's own log, whose events from ``update.since`` are new.
        items: Item table of the newer log.
        users: User table of the newer log.
        overrides: Dotted options, as for `RunConfig.load`.

    Raises:
        ConfigError: An option is wrong, or belongs to a section that cannot change (`KEPT`).
    """
    own, config = (RunConfig.load(model / "run.yaml", words) for words in ((), overrides))
    for section in KEPT:
        if getattr(config, section) != getattr(own, section):
            raise ConfigError(
                f"an option of {section} is changed",
                where="llm-influence update",
                expected=f"the {section} section of the run, as its weights depend on it",
                fix="remove the option, or fine-tune a new run",
            )
    data = config.data
    if log is not None:
        data = data.model_copy(update={"source": log, "items": items, "users": users})
    return config.model_copy(update={"output": str(output), "data": data})


def open_newer(config: RunConfig) -> BehaviorLog:
    """Read the newer log of `update_config`, with the run's own column names."""
    return open_data(config.data)


@distributed()
def update(
    model: Path, config: RunConfig, newer: BehaviorLog | None = None, *, resume: bool = False
) -> UpdateResult:
    """Continue to train a finished run on newer events, and write a new run folder.

    Each epoch reads every window that ends in the new period, where only new events are labels,
    and a fixed draw of the run's own windows (`ReplayWindows`). Validation examples of the new
    period choose the epoch. Several processes are used and ended as by `finetune`.

    Args:
        model: The run's folder.
        config: Made by `update_config`. ``train`` holds the training options, ``update`` the new
            period and the share of replay, ``data.split`` the split of the whole log.
        newer: A log that continues the run's own; default: the run's log, cut by ``update.since``.
        resume: Continue from the last checkpoint in the new folder, if there is one.

    Raises:
        OutputError: The new folder holds a run and ``resume`` is False.
        UnknownNameError: The run does not know a behaviour of the new period.
        DataError: The run has seen the new period, a new item has no text, the run does not know a
            value, or a period has no events to train on or to measure.
        ModelError: There are new items, and the backbone itself was trained (``full``).
    """
    folder, state = Path(config.output), PartialState()
    checkpoint = checkpoint_of(folder, resume=resume)
    base = InfluenceModel.from_pretrained(model).to(state.device)
    periods = _periods(base, Split.load(model / "split", base.catalogue), config, newer)
    prepare(base, periods)
    base.rules = config.rules
    if state.is_main_process:
        start_folder(folder, config, periods.split)
    trainer = update_trainer(base, periods, config, share=config.update.replay)
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
            base,
            trainer.state.log_history,
            more={"update": _facts(result, periods, model)},
        )
    state.wait_for_everyone()
    return result


def prepare(model: InfluenceModel, periods: PeriodSplit) -> None:
    """Add new items by their text, and count the training events (`Vocabulary.counts`)."""
    if len(periods.added):
        model.add_items(periods.added)
    items = len(model.catalogue)
    vocabulary = replace(
        model.encoder.vocabulary, counts=np.bincount(periods.split.train.items, minlength=items)
    )
    model.encoder = model.encoder.with_vocabulary(vocabulary)


def update_trainer(
    model: InfluenceModel, periods: PeriodSplit, config: RunConfig, *, share: float
) -> InfluenceTrainer:
    """A trainer on the windows of `ReplayWindows`."""
    windows = ReplayWindows(
        periods.split.train,
        model.encoder,
        known=periods.known,
        trained=periods.trained,
        share=share,
        seed=config.train.seed,
        prefixes=config.train.examples == "prefixes",
    )
    processes = PartialState().num_processes
    arguments = training_arguments(config, Path(config.output), processes)
    return InfluenceTrainer(config, model, periods.split, args=arguments, windows=windows)


def measure_periods(trainer: InfluenceTrainer, periods: PeriodSplit) -> dict[str, Metrics]:
    """Metrics on the test examples of the ``old`` and of the ``new`` period."""
    parts = {"old": periods.old, "new": periods.split.test}
    return {name: trainer.measure(rows) for name, rows in parts.items()}


def _periods(
    model: InfluenceModel, before: Split, config: RunConfig, newer: BehaviorLog | None
) -> PeriodSplit:
    cut = config.update.since
    since = None if cut is None else moment_of(cut, before.log.timestamps, "update.since")
    described = newer is None or config.data.items is not None
    periods = split_periods(before, newer, since, config.data.split, described=described)
    _check_values(model, before.train, periods)
    return periods


def _check_values(model: InfluenceModel, train: BehaviorLog, periods: PeriodSplit) -> None:
    """Check that the model has a token for every new value.

    With few distinct values (ratings) each has its own token; amounts fall into bins.
    """
    if len(np.unique(train.values[~np.isnan(train.values)])) > MOST_DISTINCT_VALUES:
        return
    log, known = periods.split.log, model.encoder.vocabulary.values.edges
    fresh = (log.timestamps >= periods.since) & ~np.isnan(log.values)
    unseen = fresh & ~np.isin(log.values, known)
    if unseen.any():
        event = int(np.argmax(unseen))
        user = log.user_ids[int(log.rows_of_users()[event])].as_py()
        item = log.catalogue.ids[int(log.items[event])].as_py()
        raise DataError(
            f"value {log.values[event]:g} does not occur in the training events of the run",
            where=f"user {user!r}, item {item!r}",
            expected=", ".join(f"{value:g}" for value in known) or "events without a value",
            fix="convert the values to the run's scale, drop them, or fine-tune a new run",
        )


def _facts(result: UpdateResult, periods: PeriodSplit, model: Path) -> dict[str, object]:
    return {
        "from": str(model),
        "since": periods.split.description["new_since"],
        "windows": result.windows,
        "new_items": len(periods.added),
        "old_period": {"rows": len(periods.old), **result.old},
        "new_period": {"rows": len(periods.split.test), **result.new},
    }
