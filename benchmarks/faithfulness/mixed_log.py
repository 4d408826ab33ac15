"""Generated logs of a second process, and its exact values for any subset of a history.

The log-odds of the next item add up, in the softmax over I items,

    log popularity[j] + taste[user, genre(j)] + R log(1 + visits of j)
    + sum over events e of (w[behaviour(e)] + p [a cart after a view of the same item])
                           * 2^(-age(e) / half_life[behaviour(e)]) * M[item(e), j].

Against `llm_influence.datasets.planted` it has a half-life for each behaviour, a behaviour that
speaks against the items it is linked to, effects of pairs of events, revisits, tastes, impressions
that follow popularity and cause nothing, pauses of seconds to months, and events at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HOUR = 3600.0
BEHAVIORS = {  # weight, half-life in seconds
    "impression": (0.0, 6 * HOUR),
    "view": (0.8, 2 * HOUR),
    "favourite": (1.6, 7 * 24 * HOUR),
    "cart": (2.4, 24 * HOUR),
    "purchase": (1.2, 30 * 24 * HOUR),
    "dislike": (-2.0, 14 * 24 * HOUR),
}
SHARES = (0.30, 0.12, 0.16, 0.10, 0.12)
"""Of view, favourite, cart, purchase and dislike among the events that are no impressions."""
VIEW, CART = 1, 3
PAIR = 1.0
"""Added to the weight of a cart after a view of the same item."""
REVISIT = 1.2
STRENGTHS = (1.6, 1.2, 0.9, 0.6)
GENRES, TASTE = 10, 0.5
GAP, GAP_SPREAD, TIES = 3 * HOUR, 2.2, 0.08
"""Median pause, standard deviation of its logarithm, and share of events without a pause."""
FIRST_TIME = 1_750_000_000
POPULAR = 0.3


@dataclass(frozen=True, eq=False)
class Process:
    """The process of I items and U users.

    Attributes:
        links: (I, I) M: each item draws four others.
        popularity: (I,) logarithms.
        genres: (I,) genre of each item.
        tastes: (U, genres).
    """

    links: Floats
    popularity: Floats
    genres: Ints
    tastes: Floats

    @classmethod
    def draw(cls, users: int, items: int, random: np.random.Generator) -> Process:
        """The process of a seed."""
        links = np.zeros((items, items))
        for item in range(items):
            others = np.delete(np.arange(items), item)
            links[item, random.choice(others, len(STRENGTHS), replace=False)] = STRENGTHS
        popularity = -0.5 * np.log(1.0 + random.permutation(items))
        genres = random.integers(0, GENRES, items)
        return cls(links, popularity, genres, TASTE * random.normal(size=(users, GENRES)))

    def logits(self, user: Ints, past: Past, kept: Bools) -> Floats:
        """(N, I) logits of the next item after the ``kept`` (N, E) of (N, E) events."""
        drawn = past.pull(kept)
        size = len(self.popularity)
        linked = by_item(past.items, drawn, size) @ self.links
        visits = by_item(past.items, kept.astype(float), size)
        taste = self.tastes[user][:, self.genres]
        return self.popularity + taste + linked + REVISIT * np.log1p(visits)


@dataclass(frozen=True, eq=False)
class Past:
    """Histories of E events: (N, E) items, behaviours and ages in seconds."""

    items: Ints
    behaviors: Ints
    ages: Ints

    def pull(self, kept: Bools) -> Floats:
        """(N, E) strength with which each event pulls at what its item draws."""
        weights, half_lives = np.array(list(BEHAVIORS.values())).T
        viewed = kept & (self.behaviors == VIEW)
        same = self.items[:, :, None] == self.items[:, None, :]
        earlier = np.tril(np.ones(same.shape[1:], dtype=bool), -1)
        paired = (same & earlier & viewed[:, None, :]).any(axis=2) & (self.behaviors == CART)
        strengths = weights[self.behaviors] + PAIR * paired
        decayed: Floats = strengths * 0.5 ** (self.ages / half_lives[self.behaviors])
        return decayed * kept

    def repeat(self, row: int, count: int) -> Past:
        """One history, ``count`` times."""
        return Past(*(np.tile(a[row], (count, 1)) for a in (self.items, self.behaviors, self.ages)))


def by_item(items: Ints, values: Floats, size: int) -> Floats:
    """(N, ``size``) sums of (N, E) values by item."""
    sums = np.zeros((len(items), size))
    np.add.at(sums, (np.arange(len(items))[:, None], items), values)
    return sums


@dataclass(frozen=True, eq=False)
class MixedLog:
    """A log of U users with T events each; arrays are (U, T)."""

    process: Process
    items: Ints
    behaviors: Ints
    times: Ints

    @cached_property
    def log(self) -> BehaviorLog:
        """The same as a log of the library."""
        users, length = self.items.shape
        return BehaviorLog.from_arrays(
            user_ids=[f"u{n:06d}" for n in range(users)],
            offsets=np.arange(users + 1) * length,
            items=self.items.ravel(),
            timestamps=self.times.ravel(),
            catalogue=Catalogue.from_ids([f"i{n:04d}" for n in range(len(self.process.links))]),
            behaviors=self.behaviors.ravel(),
            behavior_names=tuple(BEHAVIORS),
        )

    def past(self, step: int, first: int = 0) -> Past:
        """The events ``first`` to ``step`` of all users, seen from the time of event ``step``."""
        events = slice(first, step)
        ages = self.times[:, step, None] - self.times[:, events]
        return Past(self.items[:, events], self.behaviors[:, events], ages)

    def values(self, user: int, past: Past, masks: Bools) -> Floats:
        """(M,) log-odds of the last item for masks (M, E) of the events of the past of a user."""
        many = past.repeat(user, len(masks))
        logits = self.process.logits(np.full(len(masks), user), many, masks)
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        target = chances[:, self.items[user, -1]]
        odds: Floats = np.log(target) - np.log(chances.sum(axis=1) - target)
        return odds


def make_log(seed: int, *, users: int, items: int = 300, length: int = 30) -> MixedLog:
    """Draw a log; the same seed gives the same log."""
    random = np.random.default_rng([seed, 2])
    process = Process.draw(users, items, random)
    shape = (users, length)
    pauses = GAP * np.exp(GAP_SPREAD * random.normal(size=shape))
    pauses[random.random(shape) < TIES] = 0.0
    pauses[:, 0] = FIRST_TIME + random.integers(0, 30 * 86_400, size=users)
    log = MixedLog(
        process, np.zeros(shape, int), np.zeros(shape, int), pauses.astype(np.int64).cumsum(axis=1)
    )
    popular = process.popularity > np.quantile(process.popularity, 1 - POPULAR)
    everyone = np.arange(users)
    for step in range(length):
        past = log.past(step)
        logits = process.logits(everyone, past, np.ones(past.items.shape, dtype=bool))
        log.items[:, step] = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
        shown = random.random(users) < np.where(popular[log.items[:, step]], 0.45, 0.1)
        others = random.choice(np.arange(1, 6), size=users, p=np.array(SHARES) / sum(SHARES))
        log.behaviors[:, step] = np.where(shown, 0, others)
    return log
