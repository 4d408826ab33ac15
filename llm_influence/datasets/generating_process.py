"""A known law of what comes next, so that the influence of every event is known too.

After events 1..E an item j has the score

    s_j = sum over i of a_i A(i, j) [1 + p / 2 * sum over k != i of a_k A(i, k)],
    a_i = weight of i's behaviour * 2^(-age_i / half-life)

and comes next with probability softmax(s / temperature)_j. A is the affinity of two items, p the
strength of pair effects. Without these (p = 0) events add up, and what event i gives to item j is
``a_i A(i, j) / temperature`` whatever else happened.

Ages count back from the last event of the whole history. When an event is taken away the ages of
the others stay: the law has a clock, and the clock does not stop for an event that never happened.

An unfair law adds a constant to some items' scores for the users of one group, whatever they did.
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

from llm_influence.errors import UnknownNameError, choices
from llm_influence.types import BoolArray, History, IntArray

Floats = npt.NDArray[np.float64]

GROUP, GROUPS = "group", ("a", "b")
"""A feature of users that may shift the law's scores, and its values; b is the shifted one."""


@dataclass(frozen=True, eq=False)
class Drift:
    """A change of the law.

    Attributes:
        date: Unix seconds; what comes after a history that ends at this moment or later follows
            the changed law, whatever the age of its events.
        weights: (B,) weight of each behaviour from then on.
    """

    date: int
    weights: Floats


@dataclass(frozen=True, eq=False)
class GeneratingProcess:
    """The law over I items and B behaviours.

    Attributes:
        item_ids: (I,) item ids.
        factors: (I, R) vectors of the items; the affinity of two is their dot product.
        behaviors: (B,) names.
        weights: (B,) weight of each behaviour; 0 is a distractor's.
        half_life: Age at which an event counts half, in units of ``clock``.
        clock: Ages in ``seconds``, or in ``steps`` (how many events lie behind).
        pair_strength: p of the equation.
        temperature: Of the softmax.
        drift: What changes at a date; None: nothing.
        group_shift: (I,) added to the scores for users whose feature ``group`` is b; None: nothing.
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
        """Scores divided by the temperature, of all items.

        Args:
            items: (..., E) codes of the past events' items, E may be 0.
            behaviors: (..., E) codes of their behaviours.
            timestamps: (..., E) their times.
            kept: (..., E) bool, which events count; default: all.
            shift: (..., I) added to the scores, see `shift_of`; default: nothing.

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
        """(I,) what the law adds to the scores for a user with these features, or 0."""
        if self.group_shift is None or user.get(GROUP) != GROUPS[1]:
            return 0.0
        return self.group_shift

    def weights_of(self, behaviors: IntArray, timestamps: IntArray) -> Floats:
        """(..., E) weight of each event's behaviour when the last event happened."""
        weights = self.weights[behaviors]
        if self.drift is None:
            return weights
        changed = timestamps[..., -1:] >= self.drift.date
        return np.where(changed, self.drift.weights[behaviors], weights)

    def decay(self, timestamps: IntArray) -> Floats:
        """(..., E) what is left of each event at its age: all of the last, half a half-life ago."""
        if self.clock == "steps":
            ages = np.broadcast_to(np.arange(timestamps.shape[-1])[::-1], timestamps.shape)
        else:
            ages = timestamps[..., -1:] - timestamps
        return 0.5 ** (ages / self.half_life)

    def log_probabilities(self, history: History) -> Floats:
        """(I,) log-probability that each item comes next.

        Raises:
            UnknownNameError: An item or behaviour of the history is not the law's.
        """
        shift = self.shift_of(history.user)
        logits = self.logits(*self._codes(history), history.timestamps, shift=shift)
        return logits - np.logaddexp.reduce(logits)

    def values(
        self, history: History, masks: BoolArray, item: int, other: int | None = None
    ) -> Floats:
        """(M,) the target with only the events of each (M, E) mask: a value function.

        The target is the log-odds of ``item`` against all others, or its contrast with ``other``:
        the difference of the two log-probabilities.

        Raises:
            UnknownNameError: An item or behaviour of the history is not the law's.
        """
        shift = self.shift_of(history.user)
        logits = self.logits(*self._codes(history), history.timestamps, masks, shift)
        if other is not None:
            return logits[:, item] - logits[:, other]
        rest = np.delete(logits, item, axis=1)
        return logits[:, item] - np.logaddexp.reduce(rest, axis=1)

    def influence(self, history: History, item: int, other: int | None = None) -> Floats:
        """(E,) what the target (see `values`) loses when each event alone is taken away."""
        whole = np.ones((1, len(history)), dtype=bool)
        masks = np.concatenate([whole, ~np.eye(len(history), dtype=bool)])
        values = self.values(history, masks, item, other)
        return values[0] - values[1:]

    def _codes(self, history: History) -> tuple[IntArray, IntArray]:
        """The law's own codes of (E,) items and (E,) behaviours."""
        names = history.code_names.behaviors
        if history.code_names.items is self.item_ids and names == self.behaviors:
            return history.items, history.behaviors
        items = pc.index_in(pa.array(history.item_ids(), pa.string()), value_set=self.item_ids)
        for name in sorted({names[code] for code in history.behaviors} - set(self.behaviors)):
            raise self._unknown("behaviour", name, choices(self.behaviors, name))
        if items.null_count:
            place = items.is_null().index(True).as_py()
            expected = f"one of the law's {len(self.item_ids)} items"
            raise self._unknown("item", history.item_ids()[place], expected)
        own = {name: code for code, name in enumerate(self.behaviors)}
        behaviors = np.array([own[names[code]] for code in history.behaviors], dtype=np.int64)
        return items.to_numpy(zero_copy_only=False).astype(np.int64), behaviors

    def _unknown(self, kind: str, name: str, expected: str) -> UnknownNameError:
        return UnknownNameError(
            f"{kind} {name!r} is not known",
            where="law",
            expected=expected,
            fix="ask about histories of the log that the law made",
        )


def cluster_factors(
    clusters: IntArray, rank: int, spread: float, random: np.random.Generator
) -> Floats:
    """(I, R) unit vectors of items around their cluster's centre; zero where the cluster is -1.

    Args:
        clusters: (I,) cluster of each item, -1 for an item without affinity to any.
        rank: R. With as many dimensions as clusters the centres are orthogonal, so that clusters
            have nothing to do with each other; with fewer they are drawn at random, and clusters
            support and oppose each other.
        spread: Length of the random step from the centre; 0 makes the items of a cluster equal.
        random: What draws.
    """
    count = int(clusters.max()) + 1
    centres = np.eye(count, rank) if rank >= count else _unit(random.normal(size=(count, rank)))
    steps = _unit(random.normal(size=(len(clusters), rank)))
    return _unit(centres[clusters] + spread * steps) * (clusters >= 0)[:, None]


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
