"""Behaviour logs whose next event follows a known law, with the truth beside them.

What an attribution method should find is known here in closed form (`llm_influence.data.law`), so
a method can be held against the truth instead of against another method.

Users act in sessions: events of one session are seconds apart, sessions hours or days. A user's
history ends in a session of at least two events. So the time of the last one is still told by its
neighbour when it is dropped, and a drop moves no other event's age by more than a minute.

With ``exposure_spread`` the log is confounded: an item comes next with a chance proportional to
what the law says times how often the item is shown (`exposure` of the item table). The law and the
truth stay what they are: what would come next if all items were shown alike.
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

from llm_influence.config.synthetic import PlantedConfig
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
"""The behaviour of weight zero."""

THEMES = (
    *("jazz record", "garden tool", "space film", "cooking book", "running shoe", "board game"),
    *("oil painting", "camping tent", "wooden toy", "office chair", "dog food", "bicycle part"),
)
"""What the items of each cluster are called."""

EXPOSURE = "exposure"
"""Column of the item table, where items are shown unequally often."""

PLAIN = "gift card"
"""What items without any affinity are called."""

FIRST_TIME = 1_750_000_000
WITHIN_SESSION = (5, 60)
"""Seconds between two events of one session."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Truth:
    """What made the law favour what it favours, for each of a log's U users.

    The history explained is all of a user's events but the last; that one is what came next. All
    is worked out when it is first asked for.

    Attributes:
        law: The law.
        log: The log it made.
        target: ``contrast`` or ``item``, see `PlantedConfig`.
        cause_share: Share of a history's largest influence from which on an event is a cause.
    """

    law: GeneratingProcess
    log: BehaviorLog
    target: Literal["contrast", "item"]
    cause_share: float

    @cached_property
    def targets(self) -> Ints:
        """(U,) code of the item that the law favours after the history."""
        return self._best[0]

    @cached_property
    def others(self) -> Ints | None:
        """(U,) code of the item it is contrasted with: the law's first among other clusters.

        None where the target is the item's log-odds.
        """
        return self._best[1] if self.target == "contrast" else None

    @cached_property
    def influence(self) -> list[npt.NDArray[np.float64]]:
        """U arrays (E,), what the target loses when an event alone is taken away."""
        others = [None] * len(self.log) if self.others is None else self.others
        return [
            self.law.influence(self.history(user), item, other)
            for user, (item, other) in enumerate(zip(self.targets, others, strict=True))
        ]

    @cached_property
    def is_cause(self) -> list[npt.NDArray[np.bool_]]:
        """U arrays (E,) bool, where that is at least ``cause_share`` of the history's largest."""
        sizes = [np.abs(moved) for moved in self.influence]
        return [(size > 0) & (size >= self.cause_share * size.max()) for size in sizes]

    @cached_property
    def _best(self) -> tuple[Ints, Ints]:
        clusters = self.log.catalogue.table["cluster"].to_numpy()
        best = np.zeros((2, len(self.log)), dtype=np.int64)
        for user in range(len(self.log)):
            scores = self.law.log_probabilities(self.history(user))
            best[0, user] = scores.argmax()
            elsewhere = clusters != clusters[best[0, user]]
            best[1, user] = np.where(elsewhere, scores, -np.inf).argmax()
        return best[0], best[1]

    def history(self, user: int) -> History:
        """The history explained of user number ``user``."""
        return self.log.at(user, int(self.log.lengths[user]) - 1)

    def to_table(self) -> pa.Table:
        """One row an explained event: user_id, position, target, other, influence, is_cause."""
        lengths = np.array([len(row) for row in self.influence])
        ids, user = self.log.catalogue.ids, np.repeat(np.arange(len(lengths)), lengths)
        others = None if self.others is None else ids.take(pa.array(self.others[user]))
        return pa.table(
            {
                "user_id": self.log.user_ids.take(pa.array(user)),
                "position": np.concatenate([np.arange(length) for length in lengths]),
                "target": ids.take(pa.array(self.targets[user])),
                "other": pa.nulls(len(user), pa.string()) if others is None else others,
                "influence": np.concatenate(self.influence),
                "is_cause": np.concatenate(self.is_cause),
            }
        )


def generate(config: PlantedConfig) -> tuple[BehaviorLog, Truth]:
    """Make a log and its truth; the same configuration gives the same.

    Two configurations that differ in ``users`` or ``user_seed`` alone follow the same law.
    """
    law, catalogue = _law(config)
    log = _log(config, law, catalogue)
    return log, Truth(law, log, config.target, config.cause_share)


def write_planted(config: PlantedConfig, folder: Path) -> tuple[BehaviorLog, Truth]:
    """`generate`, and write all of it.

    ``events.parquet`` and ``items.parquet`` (and ``users.parquet``, where users have a group) are a
    log like any other, ``truth.parquet`` has the
    influence of every event (`Truth.to_table`), ``law.json`` the law.

    Raises:
        OutputError: The folder cannot be written.
    """
    log, truth = generate(config)
    tables = {
        "events": log.to_table().drop_columns("value"),
        "items": log.catalogue.table,
        "truth": truth.to_table(),
    }
    if log.users is not None:
        tables["users"] = log.users.add_column(0, "user_id", log.user_ids)
    for name, table in tables.items():
        write_whole(folder / f"{name}.parquet", partial(pq.write_table, table))
    text = json.dumps(_described(config, truth.law), indent=2, ensure_ascii=False)
    write_text(folder / "law.json", text + "\n")
    return log, truth


def _law(config: PlantedConfig) -> tuple[GeneratingProcess, Catalogue]:
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
    law = GeneratingProcess(
        item_ids=catalogue.ids,
        factors=cluster_factors(clusters, rank, config.spread, random),
        behaviors=tuple(behaviors),
        weights=np.array(list(behaviors.values())),
        half_life=config.half_life,
        clock=config.clock,
        pair_strength=config.pair_strength,
        temperature=config.temperature,
        drift=_drift(config, tuple(behaviors)),
        group_shift=config.group_shift * (clusters == 0) if config.group_shift else None,
    )
    return law, catalogue


def _drift(config: PlantedConfig, behaviors: tuple[str, ...]) -> Drift | None:
    if config.drift is None:
        return None
    begins = datetime.combine(config.drift.date, time(), UTC)
    # Distractors stay without weight.
    weights = [config.drift.behaviors.get(name, 0.0) for name in behaviors]
    return Drift(int(begins.timestamp()), np.array(weights))


def _log(config: PlantedConfig, law: GeneratingProcess, catalogue: Catalogue) -> BehaviorLog:
    random = np.random.default_rng([config.seed, 1, config.user_seed])
    users, most = config.users, config.max_events
    lengths = random.integers(config.min_events, most + 1, size=users)
    times = _times(config, lengths, random)
    behaviors = random.choice(len(law.behaviors), size=(users, most), p=_shares(config, law))
    items = np.zeros((users, most), dtype=np.int64)
    shown = np.log(_exposures(config, len(catalogue))) if config.exposure_spread else 0.0
    in_b = _in_group_b(config)
    shift = np.outer(in_b, law.shift_of({GROUP: GROUPS[1]}) + np.zeros(len(catalogue)))
    first = catalogue.table["cluster"].to_numpy() == 0
    taste = np.outer(in_b, config.group_taste * first)
    for step in range(most):  # Gumbel's trick draws from the softmax
        past = (items[:, :step], behaviors[:, :step], times[:, :step])
        added = shift + taste * (step < lengths - 1)[:, None]
        logits = law.logits(*past, shift=added) if step else added / law.temperature
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
        behavior_names=law.behaviors,
        users=pa.table({GROUP: np.array(GROUPS)[in_b.astype(int)]}) if config.group_share else None,
    )


def _exposures(config: PlantedConfig, items: int) -> npt.NDArray[np.float64]:
    """(I,) how often each item is shown, the most shown being 1."""
    random = np.random.default_rng([config.seed, 2])
    steps = config.exposure_spread * random.normal(size=items)
    return np.exp(steps - steps.max())


def _in_group_b(config: PlantedConfig) -> npt.NDArray[np.bool_]:
    """(U,) who is of group b; drawn apart, so that the same users without groups stay the same."""
    random = np.random.default_rng([config.seed, 2, config.user_seed])
    return random.random(config.users) < config.group_share


def _shares(config: PlantedConfig, law: GeneratingProcess) -> npt.NDArray[np.float64]:
    """(B,) how often each behaviour occurs: distractors by their share, the rest evenly."""
    shares = np.full(len(law.behaviors), (1 - config.distractor_share) / len(config.behaviors))
    shares[len(config.behaviors) :] = config.distractor_share
    return shares


def _times(config: PlantedConfig, lengths: Ints, random: np.random.Generator) -> Ints:
    """(U, max_events) times of all events; the last two before the end share a session."""
    shape = (config.users, config.max_events)
    pauses = 3600 * config.gap_hours * np.exp(config.gap_spread * random.normal(size=shape))
    first, last = WITHIN_SESSION
    within = random.integers(first, last + 1, size=shape)
    same = random.random(shape) < config.session_share
    same[np.arange(config.users), lengths - 2] = True
    gaps = np.where(same, within, np.maximum(pauses.astype(np.int64), last + 1))
    gaps[:, 0] = FIRST_TIME + random.integers(0, 30 * 86_400, size=config.users)
    return gaps.cumsum(axis=1)


def _described(config: PlantedConfig, law: GeneratingProcess) -> dict[str, object]:
    # A law that stays the same is written as it was before laws could change.
    kept = config.model_dump(mode="json", exclude=None if config.drift else {"drift"})
    drift = {"drift": kept["drift"]} if config.drift else {}
    return {
        "equation": "P(item) = softmax over items of (sum over events of weight(behavior) "
        "* 2^(-age / half_life) * dot(factors(event's item), factors(item)) "
        "* [1 + pair_strength / 2 * sum over other events of their weight * decay * affinity]) "
        "/ temperature; age is counted from the history's last event",
        "exposure": "what comes next in the log is drawn by P(item) * exposure of the item table"
        if config.exposure_spread
        else None,
        "target": config.target,
        "behaviors": dict(zip(law.behaviors, law.weights.tolist(), strict=True)),
        **drift,
        "half_life": law.half_life,
        "clock": law.clock,
        "pair_strength": law.pair_strength,
        "temperature": law.temperature,
        "group_shift": None if law.group_shift is None else law.group_shift.tolist(),
        "item_ids": law.item_ids.to_pylist(),
        "factors": law.factors.tolist(),
        "config": kept,
    }
