"""Strength of behaviours, and their share of what was chosen: two results kept apart by name.

- Strength: how strongly an event pulls at the items that it is linked to. Drawn targets measure it
  (`attribution.drawn`), and so do the gates of a memory.
- Share of what was chosen: how much of the chosen targets the events account for. Old or weak
  events are linked to what was chosen more rarely, so strength and selection multiply in it.

Scores of drawn targets are relative to the mean of all items, so their mean is 0 by construction. A
score s of an event of behaviour b and age a is

    s = A_b 2^(-a / h_b) L

with strength A_b, half-life h_b, and L of the pair of items, which does not depend on b and a
because the target was drawn. The mean of s |s| is therefore in proportion to A_b |A_b| 2^(-2a/h_b):
few items are linked, and strongly, so they decide its sign; symmetric errors of s cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llm_influence.analysis.columns import EPOCH, HOUR, Windows
from llm_influence.analysis.decay import EXPONENTIAL, best_fit
from llm_influence.analysis.levels import Cells, factors_of, gather_cells
from llm_influence.analysis.output import Record, with_interval
from llm_influence.analysis.statistics import LEAST_GROUPS, critical
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import DynamicsOptions
from llm_influence.errors import DataError
from llm_influence.types import FloatArray, IntArray


class HasGates(Protocol):
    """A memory, such as `modeling.memory.Memory`."""

    def gates(self) -> Sequence[Any]:
        """Its gates, one a behaviour, with ``behavior``, ``weight`` and ``half_life``."""


_ALWAYS = Windows("always", (EPOCH,), "0")
LONGEST = 10.0
"""A half-life of more than so many times the oldest age is not measured."""


def behavior_strengths(view: InfluenceView, match: str | None = None) -> list[Record]:
    """Strength and half-life of each behaviour, from explanations of drawn targets.

    Both come from one fit by least squares to the mean of ``s |s|`` (see the module), with every
    age weighted by its events; with ``match`` to the mean score. Intervals leave out one group of
    users at a time (the delete-a-group jackknife).

    Args:
        view: Tables of drawn targets: ``llm-influence explain --target drawn:4,16``.
        match: Column ``match:...``; see `InfluenceView.sign_of`.

    Returns:
        A record for each behaviour, the strongest first; none if there is only one behaviour.
        ``strength`` is relative to the strongest. The half-life is None where the strength is
        not above its error, or does not fall within the ages of the tables.

    Raises:
        DataError: The targets were chosen, or there are too few users.
    """
    if not view.drawn:
        raise DataError(
            "targets that were chosen",
            where="strength of behaviours",
            expected="targets drawn without regard to the history",
            fix="explain with --target drawn:4,16",
        )
    view.require_users(LEAST_GROUPS, "standard errors are over users")
    squares = match is None
    cells, groups = _by_behavior(view, match, squares=squares)
    fits = [_fitted(own, groups, squares=squares) for own in cells]
    top = np.abs([starts for starts, _ in fits]).max(axis=0, initial=0.0)
    if not fits or not top.all():
        return []
    records = [
        {
            "behavior": own.level,
            **_interval("strength", starts / top, "strength_"),
            **_half_life(own, starts / top, lives),
            "events": int(own.events.sum()),
        }
        for own, (starts, lives) in zip(cells, fits, strict=True)
    ]
    return sorted(records, key=lambda record: -abs(record["strength"]))


def strengths_of_memory(memory: HasGates) -> list[Record]:
    """Strength and half-life of each behaviour, read from the gates of a memory.

    Args:
        memory: Such as ``model.item_head.memory``; see the memory's page.

    Returns:
        Records as of `behavior_strengths`, without intervals.
    """
    gates = sorted(memory.gates(), key=lambda gate: -gate.weight)
    return [
        {
            "behavior": gate.behavior,
            "strength": gate.weight,
            "half_life_hours": gate.half_life / HOUR if np.isfinite(gate.half_life) else None,
            "events": gate.events,
        }
        for gate in gates
    ]


def shares_of_chosen(view: InfluenceView, match: str | None = None) -> list[Record]:
    """Share of the chosen targets that the events of each behaviour account for.

    It is the sum of the behaviour's scores over the sum of the sizes of these sums, so the sizes of
    the shares add up to 1. Intervals are those of the delete-a-group jackknife over users.
    """
    cells, groups = _by_behavior(view, match)
    totals = np.array([own.totals.sum(axis=1) for own in cells])  # behaviours, groups
    events = np.array([own.events.sum() for own in cells])
    if not totals.any():
        return []
    sums = totals.sum(axis=1, keepdims=True)
    every = np.concatenate([sums, sums - totals[:, groups]], axis=1)
    sizes = np.abs(every).sum(axis=0)
    shares = np.divide(every, sizes, out=np.zeros_like(every), where=sizes > 0)
    records = [
        {
            "behavior": own.level,
            **_interval("share_of_chosen", values, "share_"),
            "share_of_events": float(count / events.sum()),
            "events": int(count),
        }
        for own, values, count in zip(cells, shares, events, strict=True)
    ]
    return sorted(records, key=lambda record: -abs(record["share_of_chosen"]))


def _by_behavior(
    view: InfluenceView, match: str | None, *, squares: bool = False
) -> tuple[list[Cells], IntArray]:
    """Sums of each behaviour, and the groups of users that have events."""
    factors, _ = factors_of(view, ["behavior"], required=False)
    if not factors:
        return [], np.zeros(0, dtype=np.int64)
    options = DynamicsOptions(match=match)
    everything, *cells = gather_cells(view, factors, _ALWAYS, options, squares=squares)
    return cells, np.flatnonzero(everything.events.any(axis=1))


def _fitted(cells: Cells, groups: IntArray, *, squares: bool) -> tuple[FloatArray, FloatArray]:
    """(1 + G,) A and log h of all users, then of the users without each group.

    With ``squares`` the cells hold squares, which fall twice as fast.
    """
    total, count = cells.totals.sum(axis=0), cells.events.sum(axis=0)

    def fit(total: FloatArray, count: FloatArray, near: FloatArray | None) -> FloatArray:
        kept = count > 0
        if not total[kept].any():
            return np.zeros(2)
        own, start = best_fit(EXPONENTIAL, total[kept], count[kept], cells.ages[kept], near)
        return np.array([start, own[0]])

    whole = fit(total, count, None)
    left = [fit(total - cells.totals[g], count - cells.events[g], whole[1:]) for g in groups]
    starts, lives = np.array([whole, *left]).T
    if squares:
        return np.sign(starts) * np.sqrt(np.abs(starts)), lives + np.log(2)
    return starts, lives


def _half_life(cells: Cells, strengths: FloatArray, lives: FloatArray) -> Record:
    """Half-life in hours with its interval; None where it is not measured."""
    strength = _interval("strength", strengths)
    oldest = float(np.nanmax(cells.ages))
    measured = strength["low"] * strength["high"] > 0 and lives[0] < np.log(LONGEST * oldest)
    found = _interval("half_life_hours", lives, "half_life_")
    return {
        name: float(np.exp(min(value, 700.0))) / HOUR if measured else None
        for name, value in found.items()
    }


def _interval(name: str, values: FloatArray, prefix: str = "") -> Record:
    """The first of (1 + G,) values, and its interval from those without each group."""
    whole, left = values[0], values[1:]
    error = np.sqrt((len(left) - 1) / len(left) * ((left - whole) ** 2).sum())
    return with_interval(name, whole, float(critical(len(left)) * error), prefix)
