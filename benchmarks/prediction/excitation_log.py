"""Generated logs in which events excite later items, and the truth of their examples.

An event e of age a excites the four items that its item draws, in proportion to

    weight[behaviour(e)] * 2^(-a / half_life[behaviour(e)]) * M[item(e), drawn item].

Ages count from the time of the next event. `Law.kind` says how this makes the next item:

- mixture: with fixed probabilities the next item is caused, a revisit, or drawn by popularity. A
  caused item has one parent event, drawn in proportion to its excitation.
- hawkes: the same, but an item is the more often caused the more excitation there is: the three
  intensities add up (discrete-choice Hawkes process; Hawkes 1971, doi:10.1093/biomet/58.1.83).
- softmax: log-popularity, excitation and a revisit term add up in the log-odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kind = Literal["mixture", "hawkes", "softmax"]

HOUR = 3600.0
BEHAVIORS = {  # share of the events, weight, half-life in seconds
    "impression": (0.30, 0.0, 6 * HOUR),
    "view": (0.30, 1.0, 0.5 * HOUR),
    "favourite": (0.16, 2.5, 24 * HOUR),
    "cart": (0.14, 5.0, 6 * HOUR),
    "purchase": (0.10, 1.5, 72 * HOUR),
}
"""The process of every log; the seed draws the items' strengths, and the users."""
DRAWN = 4
"""Items that each item draws."""
GAP, GAP_SPREAD = 3 * HOUR, 1.5
"""Median pause between events, and the standard deviation of its logarithm."""
FIRST_TIME = 1_750_000_000
ZIPF = 0.5
KINDS = ("revisit", "caused, in the history", "caused, new", "popularity")
RETURN_HALF_LIFE = 12 * HOUR
"""Of the decay with which an event is revisited, whatever its behaviour."""
CAUSED, REVISIT = 0.4, 0.18
"""Probabilities of the mixture; those of the Hawkes process have about the same mean."""
BASE, RETURN = 5.0, 2.2
"""Intensities of popularity and of revisits of the Hawkes process."""
STRENGTH, REVISIT_LOGIT = 1.4, 1.7
"""Factors of M and of log(1 + count) in the softmax."""


@dataclass(frozen=True, eq=False)
class Law:
    """The process of I items and B behaviours.

    Attributes:
        kind: How popularity, excitation and revisits add up.
        weights: (B,) excitation at age 0.
        half_lives: (B,) in seconds.
        transitions: (I, I) M; in the softmax the strongest item of a row is at `STRENGTH`, else
            rows sum to 1.
        popularity: (I,) probabilities.
    """

    kind: Kind
    weights: Floats
    half_lives: Floats
    transitions: Floats
    popularity: Floats

    @classmethod
    def draw(cls, kind: Kind, items: int, seed: int) -> Law:
        """The law of a seed."""
        random = np.random.default_rng([seed, 0])
        transitions = np.zeros((items, items))
        for item in range(items):
            others = np.delete(np.arange(items), item)
            strengths = np.array([0.45, 0.27, 0.17, 0.11])
            transitions[item, random.choice(others, DRAWN, replace=False)] = strengths
        if kind == "softmax":
            transitions *= STRENGTH / transitions.max()
        popularity = random.permutation((1.0 + np.arange(items)) ** -ZIPF)
        _, weights, half_lives = np.array(list(BEHAVIORS.values())).T
        return cls(kind, weights, half_lives, transitions, popularity / popularity.sum())

    def excitation(self, behaviors: Ints, ages: Ints) -> Floats:
        """(U, E) of events of these behaviours and ages."""
        decayed: Floats = self.weights[behaviors] * 0.5 ** (ages / self.half_lives[behaviors])
        return decayed

    def shares(self, excitation: Floats) -> Floats:
        """(U, 3) probabilities that the next item is caused, a revisit, drawn by popularity."""
        total = excitation.sum(axis=1)
        if self.kind == "hawkes":
            sums = np.stack([total, np.full_like(total, RETURN), np.full_like(total, BASE)], 1)
            return sums / sums.sum(axis=1, keepdims=True)
        caused = np.where(total > 0, CAUSED, 0.0)
        return np.stack([caused, np.full_like(total, REVISIT), 1 - REVISIT - caused], axis=1)

    def probabilities(self, items: Ints, behaviors: Ints, ages: Ints) -> Floats:
        """(U, I) of the next item after (U, E) events, E at least 1."""
        excitation = self.excitation(behaviors, ages)
        caused = by_item(items, excitation, len(self.popularity)) @ self.transitions
        recent = 0.5 ** (ages / RETURN_HALF_LIFE)
        returns = by_item(items, recent, len(self.popularity))
        if self.kind == "softmax":
            logits = np.log(self.popularity) + caused + REVISIT_LOGIT * returns
            raised = np.exp(logits - logits.max(axis=1, keepdims=True))
            return raised / raised.sum(axis=1, keepdims=True)
        share = self.shares(excitation)
        caused = caused / np.maximum(excitation.sum(axis=1, keepdims=True), 1e-300)
        revisits = returns / recent.sum(axis=1, keepdims=True)
        return share[:, :1] * caused + share[:, 1:2] * revisits + share[:, 2:] * self.popularity

    def parts(self, items: Ints, behaviors: Ints, ages: Ints, targets: Ints) -> Floats:
        """(U, E) excitation of the targets (U,) by each event."""
        return self.excitation(behaviors, ages) * self.transitions[items, targets[:, None]]


def by_item(items: Ints, values: Floats, size: int) -> Floats:
    """(U, ``size``) sums of (U, E) values by item."""
    sums = np.zeros((len(items), size))
    np.add.at(sums, (np.arange(len(items))[:, None], items), values)
    return sums


@dataclass(frozen=True, eq=False)
class ExcitedLog:
    """A log of U users with T events each, and its truth. Arrays are (U, T).

    Attributes:
        law: The process.
        items, behaviors, times: The events.
        drawn: (U, T) place in `KINDS` of how an item was drawn; the softmax has no such fact, -1.
        parents: (U, T) place of the parent event; -1 without one.
    """

    law: Law
    items: Ints
    behaviors: Ints
    times: Ints
    drawn: Ints
    parents: Ints

    @cached_property
    def log(self) -> BehaviorLog:
        """The same as a log of the library."""
        users, length = self.items.shape
        size = len(self.law.popularity)
        return BehaviorLog.from_arrays(
            user_ids=_names("u", users),
            offsets=np.arange(users + 1) * length,
            items=self.items.ravel(),
            timestamps=self.times.ravel(),
            catalogue=Catalogue.from_ids(_names("i", size)),
            behaviors=self.behaviors.ravel(),
            behavior_names=tuple(BEHAVIORS),
        )


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{place:0{len(str(count - 1))}}" for place in range(count)]


def make_log(
    kind: Kind, seed: int, *, users: int = 3000, items: int = 300, length: int = 40
) -> ExcitedLog:
    """Draw a log; the same seed gives the same log."""
    law = Law.draw(kind, items, seed)
    random = np.random.default_rng([seed, 1])
    shape = (users, length)
    shares = [share for share, _, _ in BEHAVIORS.values()]
    behaviors = random.choice(len(shares), size=shape, p=shares)
    pauses = GAP * np.exp(GAP_SPREAD * random.normal(size=shape))
    pauses[:, 0] = FIRST_TIME + random.integers(0, 30 * 86_400, size=users)
    times = np.maximum(pauses, 1).astype(np.int64).cumsum(axis=1)
    drawn, parents = np.full(shape, -1), np.full(shape, -1)
    chosen = np.zeros(shape, dtype=np.int64)
    chosen[:, 0] = _draw(np.tile(law.popularity, (users, 1)), random)
    for step in range(1, length):
        past = chosen[:, :step], behaviors[:, :step], times[:, step, None] - times[:, :step]
        if kind == "softmax":
            chosen[:, step] = _draw(law.probabilities(*past), random)
            continue
        excitation = law.excitation(*past[1:])
        cause = _draw(law.shares(excitation), random)
        parent = _draw(excitation + 1e-300, random)
        rows = np.arange(users)
        options = (
            _draw(law.transitions[past[0][rows, parent]], random),
            past[0][rows, _draw(0.5 ** (past[2] / RETURN_HALF_LIFE), random)],
            _draw(np.tile(law.popularity, (users, 1)), random),
        )
        item = np.choose(cause, options)
        held = (past[0] == item[:, None]).any(axis=1)
        chosen[:, step] = item
        parents[:, step] = np.where(cause == 0, parent, -1)
        drawn[:, step] = np.choose(cause, (np.where(held, 1, 2), 0, 3))
    return ExcitedLog(law, chosen, behaviors, times, drawn, parents)


def _draw(weights: Floats, random: np.random.Generator) -> Ints:
    """(U,) places drawn in proportion to (U, K) weights."""
    sums = weights.cumsum(axis=1)
    threshold = random.random((len(weights), 1)) * sums[:, -1:]
    return (sums <= threshold).sum(axis=1)
