"""A known data-generating process: it gives the influence of every event in closed form.

After events 1..E an item j has the score

    s_j = sum over i of a_i A(i, j) [1 + p / 2 * sum over k != i of a_k A(i, k)],
    a_i = weight of i's behaviour * 2^(-age_i / half-life)

and comes next with probability softmax(s / temperature)_j. A is the affinity of two items, p the
strength of pair effects. Without pair effects (p = 0) events add up: event i contributes
``a_i A(i, j) / temperature`` to item j, whatever else happened.

Ages count back from the last event of the whole history. When an event is removed, the ages of the
others stay.

An unfair process adds a constant to the scores of some items for the users of one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.errors import UnknownNameError, unknown
from llm_influence.types import BoolArray, History, IntArray

Floats = npt.NDArray[np.float64]

GROUP, GROUPS = "group", ("a", "b")
"""User feature that may shift the scores, and its values; the scores of b are shifted."""


@dataclass(frozen=True, eq=False)
class Drift:
    """A change of the behaviour weights at a date (Unix seconds).

    Histories that end at this time or later use the new weights (B,) for all of their events.
    """

    date: int
    weights: Floats


@dataclass(frozen=True, eq=False)
class GeneratingProcess:
    """The process over I items and B behaviours.

    Attributes:
        item_ids: (I,) item ids.
        factors: (I, R) vectors of the items; the affinity of two is their dot product.
        behaviors: (B,) names.
        weights: (B,) weight of each behaviour; a distractor has 0.
        half_life: Age at which an event counts half, in units of ``clock``.
        clock: Unit of ages: ``seconds``, or ``steps`` (number of later events).
        pair_strength: p of the equation.
        temperature: Temperature of the softmax.
        drift: Change of the weights at a date, or None.
        group_shift: (I,) added to the scores for users whose feature ``group`` is b, or None.
    """

    item_ids: pa.StringArray
    factors: Floats
    behaviors: tuple[str, ...]
    weights: Floats
    half_life: float
    clock: Literal["seconds", "steps"] = "seconds"
    pair_strength: float = 0.0
    temperature: float = 1.0
    drift: Drift | None = None
    group_shift: Floats | None = None

    @cached_property
    def affinity(self) -> Floats:
        """(I, I) affinity of every two items."""
        return self.factors @ self.factors.T

    def logits(
        self,
        items: IntArray,
        behaviors: IntArray,
        timestamps: IntArray,
        kept: object = True,
        shift: Floats | float = 0.0,
    ) -> Floats:
        """Scores of all items, divided by the temperature.

        Args:
            items: (..., E) codes of the past events' items, E may be 0.
            behaviors: (..., E) codes of their behaviours.
            timestamps: (..., E) their times.
            kept: (..., E) bool, which events are present; default: all.
            shift: (..., I) added to the scores, see `shift_of`; default: 0.

        Returns:
            (..., I); the leading dimensions broadcast.
        """
        weights = self.weights_of(behaviors, timestamps)
        a = weights * self.decay(timestamps) * np.asarray(kept)  # (..., E)
        if self.pair_strength:
            near = self.affinity[items[..., :, None], items[..., None, :]]  # (..., E, E)
            near = near * ~np.eye(items.shape[-1], dtype=bool)
            a = a * (1 + self.pair_strength / 2 * (near @ a[..., None])[..., 0])
        evidence = (a[..., None] * self.factors[items]).sum(axis=-2)  # (..., R)
        return (evidence @ self.factors.T + shift) / self.temperature

    def shift_of(self, user: Mapping[str, str]) -> Floats | float:
        """(I,) shift of the scores for a user with these features, or 0."""
        if self.group_shift is None or user.get(GROUP) != GROUPS[1]:
            return 0.0
        return self.group_shift

    def weights_of(self, behaviors: IntArray, timestamps: IntArray) -> Floats:
        """(..., E) weight of each event's behaviour at the time of the last event."""
        weights = self.weights[behaviors]
        if self.drift is None:
            return weights
        changed = timestamps[..., -1:] >= self.drift.date
        return np.where(changed, self.drift.weights[behaviors], weights)

    def decay(self, timestamps: IntArray) -> Floats:
        """(..., E) decay of each event by its age: 1 for the last, 1/2 at the half-life."""
        if self.clock == "steps":
            ages = np.broadcast_to(np.arange(timestamps.shape[-1])[::-1], timestamps.shape)
        else:
            ages = timestamps[..., -1:] - timestamps
        return 0.5 ** (ages / self.half_life)

    def log_probabilities(self, history: History) -> Floats:
        """(I,) log-probability that each item comes next."""
        shift = self.shift_of(history.user)
        logits = self.logits(*self._codes(history), history.timestamps, shift=shift)
        return logits - np.logaddexp.reduce(logits)

    def values(
        self, history: History, masks: BoolArray, item: int, other: int | None = None
    ) -> Floats:
        """(M,) the target with only the events of each (M, E) mask.

        The target is the log-odds of ``item`` against all others, or its contrast with ``other``:
        the difference of the two log-probabilities.
        """
        shift = self.shift_of(history.user)
        logits = self.logits(*self._codes(history), history.timestamps, masks, shift)
        if other is not None:
            return logits[:, item] - logits[:, other]
        rest = np.delete(logits, item, axis=1)
        return logits[:, item] - np.logaddexp.reduce(rest, axis=1)

    def influence(self, history: History, item: int, other: int | None = None) -> Floats:
        """(E,) loss of the target (see `values`) when each event alone is removed."""
        whole = np.ones((1, len(history)), dtype=bool)
        masks = np.concatenate([whole, ~np.eye(len(history), dtype=bool)])
        values = self.values(history, masks, item, other)
        return values[0] - values[1:]

    def _codes(self, history: History) -> tuple[IntArray, IntArray]:
        """(E,) item codes and (E,) behaviour codes of the process."""
        names, where = history.code_names.behaviors, "the data-generating process"
        if history.code_names.items is self.item_ids and names == self.behaviors:
            return history.items, history.behaviors
        items = pc.index_in(pa.array(history.item_ids(), pa.string()), value_set=self.item_ids)
        for name in sorted({names[code] for code in history.behaviors} - set(self.behaviors)):
            raise unknown(UnknownNameError, "behaviour", name, self.behaviors, where=where)
        if items.null_count:
            item = history.item_ids()[items.is_null().index(True).as_py()]
            raise unknown(UnknownNameError, "item", item, self.item_ids.to_pylist(), where=where)
        own = {name: code for code, name in enumerate(self.behaviors)}
        behaviors = np.array([own[names[code]] for code in history.behaviors], dtype=np.int64)
        return items.to_numpy(zero_copy_only=False).astype(np.int64), behaviors


def cluster_factors(
    clusters: IntArray, rank: int, spread: float, random: np.random.Generator
) -> Floats:
    """(I, R) unit vectors of items around the centre of their cluster (I,); zero for cluster -1.

    With a rank R of at least the number of clusters, the centres are orthogonal and clusters are
    unrelated. Below it they are random, so clusters support and oppose each other. ``spread`` is
    the length of the random step from the centre; 0 makes the items of a cluster equal.
    """
    count = int(clusters.max()) + 1
    centres = np.eye(count, rank) if rank >= count else _unit(random.normal(size=(count, rank)))
    steps = _unit(random.normal(size=(len(clusters), rank)))
    return _unit(centres[clusters] + spread * steps) * (clusters >= 0)[:, None]


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
