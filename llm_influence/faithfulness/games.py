"""The target's place among its alternatives, as another value of a set of events.

N histories as games: what any set of their events is worth, and one method's scores of them.

A metric needs nothing else, so it can be tried on games whose answers are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.coalitions import proper_coalitions
from llm_influence.attribution.registry import user_generator
from llm_influence.attribution.target import BoundTarget
from llm_influence.evaluation.metrics import seen_items, target_ranks
from llm_influence.modeling.model import InfluenceModel, Prediction
from llm_influence.types import BoolArray, FloatArray, History, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class RankTarget(BoundTarget):
    """Rank of a bound target, 1 is best.

    An item stands among the items that the whole history does not hold: these candidates stay the
    same while events are removed, so a rank can change through the model alone. A behaviour
    stands among all behaviours; a contrast or feedback ranks 1 while it is above its middle (zero,
    or the mean label of a regression), else 2; of a slate the first item's rank is taken.

    Attributes:
        held: (N, S) items of the whole histories, -1 where a row has fewer.
    """

    held: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    def values(self, prediction: Prediction, rows: Tensor) -> Tensor:
        """(B,) ranks for predictions made for the histories numbered ``rows`` (B,)."""
        if self.kind in ("contrast", "feedback", "feedback_value"):
            return 2 - (BoundTarget.values(self, prediction, rows) > self.middle).long()
        codes, held = self.codes[rows], self.held[rows]
        if self.kind == "behavior":
            return target_ranks(prediction.behavior_logits.cpu(), codes)
        # A target that the history already holds (a named item) is no candidate and still ranks.
        held = held.masked_fill(held == codes[:, None], -1)
        return target_ranks(prediction.item_logits.cpu(), codes, held)


def rank_target(
    target: BoundTarget, model: InfluenceModel, histories: Sequence[History]
) -> RankTarget:
    """The rank of ``target``, bound to the same whole histories."""
    codes = target.codes.cpu()
    return RankTarget(
        kind=target.kind,
        codes=codes if codes.ndim == 1 else codes[:, 0],
        other=target.other,
        ids=target.ids,
        names=target.names,
        behaviors=target.behaviors,
        middle=target.middle,
        held=seen_items([model.encoder.vocabulary.item_codes(history) for history in histories]),
    )


STEPS = tuple(range(10, 101, 10))
"""Percentages of events at which curves are read."""
TIES, HELD_OUT = 2, 3
"""Streams of draws of one user, kept apart from each other and from those of methods."""


class Values(Protocol):
    """Values of sets of events, as `attribution.value_function.ValueFunction` gives them."""

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """For each history the (M,) values of its (M, E) sets, True where an event is kept."""


@dataclass(frozen=True, eq=False)
class Game:
    """N histories whose sets of events have values.

    Attributes:
        users: N user ids; random draws depend on them and the seed, never on batch places.
        sizes: Events of each history.
        values: The target's value of a set of events, log-odds.
        ranks: The target's rank among its alternatives with a set of events, 1 is best.
        log_odds: Whether values are log-odds, which have probabilities; those of a slate have none.
        masks: Held-out random sets of each history.
        largest_set: Most events that a counterfactual set may hold.
        exact_events: Longest history whose exact Shapley values are computed.
        seed: Of the held-out sets and of the order of equal scores.
    """

    users: Sequence[str]
    sizes: Sequence[int]
    values: Values
    ranks: Values
    log_odds: bool = True
    masks: int = 64
    largest_set: int = 10
    exact_events: int = 10
    seed: int = 0

    @cached_property
    def full(self) -> FloatArray:
        """(N,) values with all events."""
        return self.each(self.values, [np.ones((1, size), dtype=bool) for size in self.sizes])

    @cached_property
    def held_out(self) -> list[BoolArray]:
        """N arrays (M, E) of random sets, each event kept with probability 1/2.

        They are drawn for the user and the seed and for no method, so all methods are tried on
        the same. Few events have few sets; each then comes once, none and all left out.
        """
        return [
            proper_coalitions(user_generator(self.seed, user, HELD_OUT), size, self.masks)
            for user, size in zip(self.users, self.sizes, strict=True)
        ]

    @cached_property
    def held_out_values(self) -> list[FloatArray]:
        """N arrays (M,) of the values of the held-out sets."""
        return self.values(self.held_out)

    def orders(self, scores: Sequence[FloatArray]) -> list[IntArray]:
        """N arrays (E,) of events, the most influential (most supporting) first.

        Equal scores are put in a random order of the user's own, the same for every method: a
        fixed rule such as "the later one first" would lend recency to methods that say nothing.
        """
        found: list[IntArray] = []
        for user, row in zip(self.users, scores, strict=True):
            chance = user_generator(self.seed, user, TIES).permutation(len(row))
            found.append(np.lexsort((chance, -row)))
        return found

    def probabilities(self, values: FloatArray) -> FloatArray:
        """The probabilities of log-odds; nan where values are something else."""
        return probability(values) if self.log_odds else np.full(values.shape, np.nan)

    @staticmethod
    def each(values: Values, masks: Sequence[BoolArray]) -> FloatArray:
        """(N,) values of one set (1, E) a history."""
        return np.array([value[0] for value in values(masks)])


@dataclass(frozen=True, eq=False)
class Scored:
    """One method's scores of the N histories of a game.

    Attributes:
        scores: N arrays (E,).
        orders: N arrays (E,) of events, the most influential first (`Game.orders`).
        base: (N,) the target at the method's own baseline.
        prompt: (N,) score of what stands outside every event.
        in_target_units: Whether scores are in the target's units; shares of one are not.
        jittered: The scores of the same histories with their gaps a little off, once a draw.
        scrambled: The scores of the same histories by a model with scrambled weights.
    """

    scores: Sequence[FloatArray]
    orders: Sequence[IntArray]
    base: FloatArray
    prompt: FloatArray
    in_target_units: bool = True
    jittered: Sequence[Sequence[FloatArray]] = ()
    scrambled: Sequence[FloatArray] | None = None


def keep_first(order: IntArray, counts: Sequence[int]) -> BoolArray:
    """(len(counts), E) sets that hold the first ``count`` events of ``order`` alone."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[None, :] < np.asarray(counts)[:, None]


def count_of(percent: int, size: int) -> int:
    """``percent`` of ``size`` events, rounded up to whole events."""
    return -(-percent * size // 100)


def probability(log_odds: FloatArray) -> FloatArray:
    """The probabilities of log-odds."""
    return 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
