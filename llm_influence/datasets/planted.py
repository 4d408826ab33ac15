"""Generated behaviour logs whose data-generating process, and so the true influence, is known.

The process gives the influence of every event in closed form (see
`llm_influence.datasets.generating_process`), so an attribution method is compared with the truth
and not with another method.

Users act in sessions: events of one session are seconds apart, sessions are hours or days apart.
The last session of a user has at least two events. When the last event is removed, its neighbour
still shows its time, and the ages of the other events change by at most a minute.

With ``exposure_spread`` the log is confounded: the next item is drawn with a probability
proportional to the process times the exposure of the item (column `exposure` of the item table).
The process and the truth stay the same: they describe the choice if all items had equal exposure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, time
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.config.data import PlantedConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.generating_process import (
    GROUP,
    GROUPS,
    Drift,
    GeneratingProcess,
    cluster_factors,
)
from llm_influence.types import History
from llm_influence.utils import write_text, write_whole

DISTRACTOR = "impression"
"""Behaviour of weight zero."""

THEMES = (
    *("jazz record", "garden tool", "space film", "cooking book", "running shoe", "board game"),
    *("oil painting", "camping tent", "wooden toy", "office chair", "dog food", "bicycle part"),
)
"""Titles of the items of each cluster."""

EXPOSURE = "exposure"
"""Column of the item table with relative exposures, if these differ."""

PLAIN = "gift card"
"""Title of items without any affinity."""

FIRST_TIME = 1_750_000_000
WITHIN_SESSION = (5, 60)
"""Shortest and longest pause within a session, seconds."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PlantedTruth:
    """The true influences for each of a log's U users, computed on first use.

    The explained history is all of a user's events but the last one, which is the observed answer.

    Attributes:
        process: The data-generating process.
        log: The generated log.
        target: ``contrast`` or ``item``, see `PlantedConfig`.
        cause_share: An event is a cause if its influence is at least this share of the largest one
            in the history.
    """

    process: GeneratingProcess
    log: BehaviorLog
    target: Literal["contrast", "item"]
    cause_share: float

    @cached_property
    def targets(self) -> Ints:
        """(U,) code of the item with the largest probability after the history."""
        return self._best[0]

    @cached_property
    def others(self) -> Ints | None:
        """(U,) code of the most probable item of another cluster; None for the log-odds target."""
        return self._best[1] if self.target == "contrast" else None

    @cached_property
    def influence(self) -> list[npt.NDArray[np.float64]]:
        """U arrays (E,), the loss of the target when one event is removed."""
        others = [None] * len(self.log) if self.others is None else self.others
        return [
            self.process.influence(self.history(user), item, other)
            for user, (item, other) in enumerate(zip(self.targets, others, strict=True))
        ]

    @cached_property
    def is_cause(self) -> list[npt.NDArray[np.bool_]]:
        """U arrays (E,) bool, whether an event is a cause (see ``cause_share``)."""
        sizes = [np.abs(influence) for influence in self.influence]
        return [(size > 0) & (size >= self.cause_share * size.max()) for size in sizes]

    @cached_property
    def _best(self) -> tuple[Ints, Ints]:
        clusters = self.log.catalogue.table["cluster"].to_numpy()
        best = np.zeros((2, len(self.log)), dtype=np.int64)
        for user in range(len(self.log)):
            scores = self.process.log_probabilities(self.history(user))
            best[0, user] = scores.argmax()
            elsewhere = clusters != clusters[best[0, user]]
            best[1, user] = np.where(elsewhere, scores, -np.inf).argmax()
        return best[0], best[1]

    def history(self, user: int) -> History:
        """The explained history of user number ``user``."""
        return self.log.at(user, int(self.log.lengths[user]) - 1)

    def to_table(self) -> pa.Table:
        """One row an explained event: user_id, position, target, other, influence, is_cause."""
        lengths = np.array([len(row) for row in self.influence])
        ids, user = self.log.catalogue.ids, np.repeat(np.arange(len(lengths)), lengths)
        others = None if self.others is None else ids.take(pa.array(self.others[user]))
        columns = {
            "user_id": self.log.user_ids.take(pa.array(user)),
            "position": np.concatenate([np.arange(length) for length in lengths]),
            "target": ids.take(pa.array(self.targets[user])),
            "other": pa.nulls(len(user), pa.string()) if others is None else others,
            "influence": np.concatenate(self.influence),
            "is_cause": np.concatenate(self.is_cause),
        }
        return pa.table(columns)


def make_planted(
    config: PlantedConfig | None = None, *, folder: Path | None = None, **options: object
) -> tuple[BehaviorLog, PlantedTruth]:
    """Generate a log and its truth; the same configuration gives the same result.

    Two configurations that differ only in ``users`` or ``user_seed`` have the same process.

    Args:
        config: The configuration; default: `PlantedConfig` with ``options``.
        folder: Folder to write to; default: nothing is written. ``events.parquet``,
            ``items.parquet`` and, if users have a group, ``users.parquet`` are an ordinary log,
            ``truth.parquet`` is `PlantedTruth.to_table`, ``process.json`` describes the process.
        options: Options of `PlantedConfig`, in place of ``config``: ``users=200, seed=3``.

    Raises:
        OutputError: The folder cannot be written.
    """
    config = config or PlantedConfig.of(options, "make_planted")
    process, catalogue = _process(config)
    log = _log(config, process, catalogue)
    truth = PlantedTruth(process, log, config.target, config.cause_share)
    if folder is not None:
        tables = {"events": log.to_table().drop_columns("value"), "truth": truth.to_table()}
        write_generated(folder, log, tables, _described(config, process))
    return log, truth


def write_generated(
    folder: Path, log: BehaviorLog, tables: dict[str, pa.Table], description: dict[str, object]
) -> None:
    """Write tables and the item and user tables of a log as Parquet, and ``process.json``."""
    tables = tables | {"items": log.catalogue.table}
    if log.users is not None:
        tables["users"] = log.users.add_column(0, "user_id", log.user_ids)
    for name, table in tables.items():
        write_whole(folder / f"{name}.parquet", partial(pq.write_table, table))
    text = json.dumps(description, indent=2, ensure_ascii=False)
    write_text(folder / "process.json", text + "\n")


def _process(config: PlantedConfig) -> tuple[GeneratingProcess, Catalogue]:
    random = np.random.default_rng([config.seed, 0])
    clusters = np.arange(config.items) % config.clusters
    clusters = np.concatenate([clusters, np.full(config.distractor_items, -1)])
    names = [THEMES[cluster] if cluster >= 0 else PLAIN for cluster in clusters]
    width = len(str(len(names) - 1))
    ids = [f"i{code:0{width}}" for code in range(len(names))]
    titles = [f"{name} {code}" for code, name in enumerate(names)]
    table = pa.table({"item_id": ids, "title": titles, "cluster": clusters})
    if config.exposure_spread:
        table = table.append_column(EXPOSURE, pa.array(_exposures(config, len(ids))))
    catalogue = Catalogue.from_table(table)
    rank = config.rank or config.clusters
    behaviors = {**config.behaviors, **({DISTRACTOR: 0.0} if config.distractor_share else {})}
    drift = None
    if config.drift is not None:
        begins = datetime.combine(config.drift.date, time(), UTC)
        weights = [config.drift.behaviors.get(name, 0.0) for name in behaviors]
        drift = Drift(int(begins.timestamp()), np.array(weights))
    process = GeneratingProcess(
        item_ids=catalogue.ids,
        factors=cluster_factors(clusters, rank, config.spread, random),
        behaviors=tuple(behaviors),
        weights=np.array(list(behaviors.values())),
        half_life=config.half_life,
        clock=config.clock,
        pair_strength=config.pair_strength,
        temperature=config.temperature,
        drift=drift,
        group_shift=config.group_shift * (clusters == 0) if config.group_shift else None,
    )
    return process, catalogue


def _log(config: PlantedConfig, process: GeneratingProcess, catalogue: Catalogue) -> BehaviorLog:
    random = np.random.default_rng([config.seed, 1, config.user_seed])
    users, most = config.users, config.max_events
    lengths = random.integers(config.min_events, most + 1, size=users)
    times = _times(config, lengths, random)
    # Distractors have their share, the other behaviours are equally frequent.
    known, share = len(config.behaviors), config.distractor_share
    shares = np.full(len(process.behaviors), (1 - share) / known)
    shares[known:] = share
    behaviors = random.choice(len(shares), size=(users, most), p=shares)
    items = np.zeros((users, most), dtype=np.int64)
    shown = np.log(_exposures(config, len(catalogue))) if config.exposure_spread else 0.0
    in_b = _in_group_b(config)
    shift = np.outer(in_b, process.shift_of({GROUP: GROUPS[1]}) + np.zeros(len(catalogue)))
    of_first = catalogue.table["cluster"].to_numpy() == 0
    taste = np.outer(in_b, config.group_taste * of_first)
    for step in range(most):  # Gumbel's trick draws from the softmax
        past = (items[:, :step], behaviors[:, :step], times[:, :step])
        added = shift + taste * (step < lengths - 1)[:, None]
        logits = process.logits(*past, shift=added) if step else added / process.temperature
        logits = logits + shown
        items[:, step] = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    real = np.arange(most) < lengths[:, None]
    width = len(str(users - 1))
    return BehaviorLog.from_arrays(
        user_ids=[f"u{user:0{width}}" for user in range(users)],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items[real],
        timestamps=times[real],
        catalogue=catalogue,
        behaviors=behaviors[real],
        behavior_names=process.behaviors,
        users=pa.table({GROUP: np.array(GROUPS)[in_b.astype(int)]}) if config.group_share else None,
    )


def _exposures(config: PlantedConfig, items: int) -> npt.NDArray[np.float64]:
    """(I,) relative exposure of each item, at most 1."""
    random = np.random.default_rng([config.seed, 2])
    steps = config.exposure_spread * random.normal(size=items)
    return np.exp(steps - steps.max())


def _in_group_b(config: PlantedConfig) -> npt.NDArray[np.bool_]:
    """(U,) who is in group b, from a generator of its own: the other draws stay the same."""
    random = np.random.default_rng([config.seed, 2, config.user_seed])
    return random.random(config.users) < config.group_share


def _times(config: PlantedConfig, lengths: Ints, random: np.random.Generator) -> Ints:
    """(U, max_events) times of all events; the last two events share a session."""
    shape = (config.users, config.max_events)
    pauses = 3600 * config.gap_hours * np.exp(config.gap_spread * random.normal(size=shape))
    first, last = WITHIN_SESSION
    within = random.integers(first, last + 1, size=shape)
    same = random.random(shape) < config.session_share
    same[np.arange(config.users), lengths - 2] = True
    gaps = np.where(same, within, np.maximum(pauses.astype(np.int64), last + 1))
    gaps[:, 0] = FIRST_TIME + random.integers(0, 30 * 86_400, size=config.users)
    return gaps.cumsum(axis=1)


def _described(config: PlantedConfig, process: GeneratingProcess) -> dict[str, object]:
    options = config.model_dump(mode="json")
    exposure = "the next item of the log is drawn from P(item) * exposure of the item table"
    return {
        "equation": "P(item) = softmax over items of (sum over events of weight(behavior) "
        "* 2^(-age / half_life) * dot(factors(event's item), factors(item)) "
        "* [1 + pair_strength / 2 * sum over other events of their weight * decay * affinity]) "
        "/ temperature; age is counted from the history's last event",
        "exposure": exposure if config.exposure_spread else None,
        "target": config.target,
        "behaviors": dict(zip(process.behaviors, process.weights.tolist(), strict=True)),
        "drift": options["drift"],
        "half_life": process.half_life,
        "clock": process.clock,
        "pair_strength": process.pair_strength,
        "temperature": process.temperature,
        "group_shift": None if process.group_shift is None else process.group_shift.tolist(),
        "item_ids": process.item_ids.to_pylist(),
        "factors": process.factors.tolist(),
        "config": options,
    }
