"""Histories as cooperative games, the scores of one method, and their recovery of a known truth.

Metrics need nothing else, so they can be tested on games with known answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from llm_influence.attribution.recommended import seen_codes
from llm_influence.attribution.registry import user_generator
from llm_influence.attribution.target import BoundTarget
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.metrics import target_ranks
from llm_influence.modeling.model import InfluenceModel, Prediction
from llm_influence.numerics import every_coalition, exact_shapley, proper_coalitions, spearman
from llm_influence.types import BoolArray, FloatArray, History, IntArray

STEPS = tuple(range(10, 101, 10))
"""Percentages of events at which curves are read."""
TIES, HELD_OUT = 2, 3
"""Streams of a user's random draws, separate from each other and from those of methods."""

Values = Callable[[Sequence[BoolArray]], list[FloatArray]]
"""For each history the (M,) values of its (M, E) sets of events, True for an event in the set."""


@dataclass(frozen=True, slots=True, eq=False)
class RankTarget(BoundTarget):
    """Rank of a bound target among its alternatives; 1 is best.

    The alternatives of an item are the items that the whole history does not hold. They stay the
    same while events are removed, so only the model can change a rank. A behaviour is ranked among
    all behaviours, a slate by its first item. A contrast or feedback has rank 1 above its middle
    value (zero, or the mean label of a regression), else 2.

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
        # A named item that the history holds is not a candidate, but it is ranked.
        held = held.masked_fill(held == codes[:, None], -1)
        return target_ranks(prediction.item_logits.cpu(), codes, held)


def rank_target(
    target: BoundTarget, model: InfluenceModel, histories: Sequence[History]
) -> RankTarget:
    """The rank of ``target``, bound to the same whole histories."""
    codes = target.codes.cpu()
    codes = codes if codes.ndim == 1 else codes[:, 0]
    held = seen_codes(model, histories)
    return RankTarget(
        kind=target.kind,
        codes=codes,
        other=target.other,
        ids=target.ids,
        names=target.names,
        behaviors=target.behaviors,
        middle=target.middle,
        held=held,
    )


@dataclass(frozen=True, eq=False)
class Game:
    """N histories whose sets of events have values.

    Attributes:
        users: N user ids; random draws depend on them and the seed, not on the batch.
        sizes: Number of events of each history.
        values: The target's value of sets of events, log-odds.
        ranks: The target's rank among its alternatives with sets of events; 1 is best.
        log_odds: Whether values are log-odds and so have probabilities; those of a slate are not.
        masks: Number of held-out random sets of each history.
        largest_set: Largest number of events in a counterfactual set.
        exact_events: Largest number of events of a history with exact Shapley values.
        seed: Seed of the held-out sets and of the order of equal scores.
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
        return self.one(self.values, [np.ones((1, size), dtype=bool) for size in self.sizes])

    @cached_property
    def held_out(self) -> list[BoolArray]:
        """N arrays (M, E) of random sets, each event kept with probability 1/2.

        They depend on the user and the seed alone, so all methods are tested on the same sets. A
        short history has few sets; each of them then occurs once, without the empty and full one.
        """
        draws = [user_generator(self.seed, user, HELD_OUT) for user in self.users]
        pairs = zip(draws, self.sizes, strict=True)
        return [proper_coalitions(draw, size, self.masks) for draw, size in pairs]

    @cached_property
    def held_out_values(self) -> list[FloatArray]:
        """N arrays (M,) of the values of the held-out sets."""
        return self.values(self.held_out)

    @cached_property
    def exact(self) -> list[FloatArray | None]:
        """N arrays (E,) of exact Shapley values; None for histories above ``exact_events``."""
        short = [size <= self.exact_events for size in self.sizes]
        masks = [
            every_coalition(size) if small else np.zeros((0, size), dtype=bool)
            for size, small in zip(self.sizes, short, strict=True)
        ]
        rows = zip(self.values(masks), short, strict=True)
        return [exact_shapley(values) if small else None for values, small in rows]

    def orders(self, scores: Sequence[FloatArray]) -> list[IntArray]:
        """N arrays (E,) of events, the most supporting first.

        Equal scores are ordered at random, by the user and for every method alike. A fixed rule
        such as "the later event first" would give constant scores the merits of recency.
        """
        draws = [user_generator(self.seed, user, TIES) for user in self.users]
        pairs = zip(draws, scores, strict=True)
        return [np.lexsort((draw.permutation(len(row)), -row)) for draw, row in pairs]

    def probabilities(self, values: FloatArray) -> FloatArray:
        """Probabilities of values; nan where values are not log-odds."""
        return expit(values) if self.log_odds else np.full(values.shape, np.nan)

    @staticmethod
    def one(values: Values, masks: Sequence[BoolArray]) -> FloatArray:
        """(N,) values of one set (1, E) for each history."""
        return np.array([value[0] for value in values(masks)])


@dataclass(frozen=True, eq=False)
class MethodScores:
    """Scores of one method for the N histories of a game.

    Attributes:
        scores: N arrays (E,).
        orders: N arrays (E,) of events, the most supporting first (`Game.orders`).
        base: (N,) the target at the method's own baseline.
        prompt: (N,) score of the tokens outside every event.
        in_target_units: Whether scores are in the target's units; shares of one are not.
        jittered: Scores of the same histories with changed gaps, once for each draw.
        scrambled: Scores of the same histories by a model with scrambled weights.
    """

    scores: Sequence[FloatArray]
    orders: Sequence[IntArray]
    base: FloatArray
    prompt: FloatArray
    in_target_units: bool = True
    jittered: Sequence[Sequence[FloatArray]] = ()
    scrambled: Sequence[FloatArray] | None = None


def keep_first(order: IntArray, counts: Sequence[int]) -> BoolArray:
    """(len(counts), E) sets of the first ``count`` events of ``order``."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[None, :] < np.asarray(counts)[:, None]


def count_of(percent: int, size: int) -> int:
    """``percent`` of ``size`` events, rounded up to whole events."""
    return -(-percent * size // 100)


def curve(
    game: Game, method: MethodScores, *, keep: bool, percents: Sequence[int] = STEPS
) -> FloatArray:
    """(N, K) log-odds with the most influential ``percents`` (K) of the events alone, or without.

    ``keep`` is True for these events alone (insertion), False without them (deletion).
    """
    masks = []
    for order in method.orders:
        top = keep_first(order, [count_of(percent, len(order)) for percent in percents])
        masks.append(top if keep else ~top)
    return np.stack(game.values(masks))


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """How well the scores of N histories recover their truth; higher is better.

    A figure is nan for a history without both causes and other events, or with a constant truth.

    Attributes:
        auroc: (N,) probability that a cause has a larger absolute score than another event.
        auprc: (N,) average precision of the causes by absolute score.
        spearman: (N,) rank correlation of scores and true influence, signs included. Events of
            equal truth share a rank, so that even the truth with a little noise stays below 1:
            with a share z of such events at about sqrt(1 - z^3).
        size_spearman: (N,) the same for absolute values, for scores without signs.
        mass: (N,) share of the absolute scores that lies on causes.
    """

    auroc: FloatArray
    auprc: FloatArray
    spearman: FloatArray
    size_spearman: FloatArray
    mass: FloatArray

    def means(self) -> dict[str, float]:
        """Mean of each figure over the histories that have it; nan where none has."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: column[~np.isnan(column)] for name, column in columns.items()}
        return {name: float(row.mean()) if len(row) else np.nan for name, row in known.items()}


def recovery(
    scores: Sequence[FloatArray], influence: Sequence[FloatArray], is_cause: Sequence[BoolArray]
) -> Recovery:
    """Compare scores with the truth, history by history.

    Args:
        scores: N arrays (E,) of a method's scores.
        influence: N arrays (E,) of true influences.
        is_cause: N arrays (E,), True for events that are true causes.

    Raises:
        ExplanationError: The numbers of histories or events differ.
    """
    lengths = [[len(row) for row in part] for part in (scores, influence, is_cause)]
    if not lengths[0] == lengths[1] == lengths[2]:
        found = "a history has another number of scores than of true influences"
        if len({len(part) for part in lengths}) > 1:
            found = f"scores of {len(scores)} histories against the truth of {len(influence)}"
        expected = "one score for every event of every history"
        fix = "explain the histories of the truth (PlantedTruth.history) whole"
        raise ExplanationError(found, where="recovery", expected=expected, fix=fix)
    rows = [_recovery(*row) for row in zip(scores, influence, is_cause, strict=True)]
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(fields(Recovery))).T
    return Recovery(*columns)


def _recovery(score: FloatArray, truth: FloatArray, cause: BoolArray) -> tuple[float, ...]:
    size = np.abs(score)
    both = bool(cause.any() and not cause.all())
    return (
        float(roc_auc_score(cause, size)) if both else np.nan,
        float(average_precision_score(cause, size)) if both else np.nan,
        spearman(truth, score, if_scores_constant=0.0),
        spearman(np.abs(truth), size, if_scores_constant=0.0),
        float(size[cause].sum() / size.sum()) if size.any() else np.nan,
    )
