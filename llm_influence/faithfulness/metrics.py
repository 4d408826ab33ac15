"""Rank correlation that says so where there is nothing to correlate.

Every metric with what there is to know about it, as data.

How much of the probability goes with the most influential events, and how much stays.

Areas under the curves that removing or adding events by influence draws, in log-odds.

Whether sums of scores foretell what sets of events are worth, on sets no method has seen.

What removals do to the recommendation itself: its rank after the events are gone.

How much scores move when the history hardly does, and when the model is scrambled.

Against exact Shapley values where those can be had, and against the whole change always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_influence import numerics
from llm_influence.errors import ExplanationError, choices
from llm_influence.faithfulness.games import STEPS, Game, Scored, count_of, keep_first
from llm_influence.types import FloatArray


def spearman(values: FloatArray, scores: FloatArray) -> float:
    """`numerics.spearman`, 0 where the scores are constant: they predict nothing."""
    return numerics.spearman(values, scores, if_scores_constant=0.0)


Better = Literal["high", "low", "zero"]
Measure = Callable[[Game, Scored], FloatArray]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name everywhere.
        better: Which way is better: high, low, or near zero on either side.
        measure: ``(game, scored) -> (N,)`` values, nan where it is not defined.
        equation: The formula, plain text; symbols as in docs/faithfulness.md.
        paper: Where it comes from.
        lies: When it says something else than it seems to.
        default: Whether it is measured without being asked for.
    """

    name: str
    better: Better
    measure: Measure
    equation: str
    paper: str
    lies: str
    default: bool = True


METRICS: dict[str, Metric] = {}


def metric(
    name: str, *, better: Better, equation: str, paper: str, lies: str, default: bool = True
) -> Callable[[Measure], Measure]:
    """Make a function a metric; the arguments are those of `Metric`."""

    def add(measure: Measure) -> Measure:
        METRICS[name] = Metric(name, better, measure, equation, paper, lies, default)
        return measure

    return add


def find_metrics(names: Sequence[str] | None) -> list[Metric]:
    """The metrics of these names, or those measured by default.

    Raises:
        ExplanationError: One is not known.
    """
    if names is None:
        return [found for found in METRICS.values() if found.default]
    for name in names:
        if name not in METRICS:
            raise ExplanationError(
                f"unknown metric {name!r}",
                where="metrics",
                expected=choices(METRICS, name),
                fix="choose among them",
            )
    return [METRICS[name] for name in dict.fromkeys(names)]


SHARE = 20
"""Percentage of events called the most influential where one size is asked for."""
ERASER = "DeYoung et al. 2020, arXiv:1911.03429"


@metric(
    f"comprehensiveness@{SHARE}",
    better="high",
    equation=f"p(x) - p(x without T_k), k = {SHARE}% of the events",
    paper=ERASER,
    lies="Where the probability is small with all events, nothing can be lost.",
)
def comprehensiveness(game: Game, scored: Scored) -> FloatArray:
    """What the probability loses without the most influential events."""
    return _whole(game) - _without(game, scored, (SHARE,))[:, 0]


@metric(
    f"sufficiency@{SHARE}",
    better="low",
    equation=f"p(x) - p(x_{{T_k}}), k = {SHARE}% of the events",
    paper=ERASER,
    lies="A set can be worth more than the whole history: opposing events are gone as well.",
)
def sufficiency(game: Game, scored: Scored) -> FloatArray:
    """What the probability loses when only the most influential events are kept."""
    return _whole(game) - _alone(game, scored, (SHARE,))[:, 0]


@metric(
    "comprehensiveness_aopc",
    better="high",
    equation="mean over k = 10, 20, ..., 100% of p(x) - p(x without T_k)",
    paper=f"{ERASER}; AOPC: Samek et al. 2017, arXiv:1509.06321",
    lies="Users of confident predictions weigh more than all others.",
)
def comprehensiveness_aopc(game: Game, scored: Scored) -> FloatArray:
    """Comprehensiveness averaged over sizes, so that no size is chosen."""
    return _whole(game) - _without(game, scored, STEPS).mean(axis=1)


@metric(
    "sufficiency_aopc",
    better="low",
    equation="mean over k = 10, 20, ..., 100% of p(x) - p(x_{T_k})",
    paper=f"{ERASER}; AOPC: Samek et al. 2017, arXiv:1509.06321",
    lies="As sufficiency; short histories are not like those the model was trained on.",
)
def sufficiency_aopc(game: Game, scored: Scored) -> FloatArray:
    """Sufficiency averaged over sizes."""
    return _whole(game) - _alone(game, scored, STEPS).mean(axis=1)


def deletion_values(game: Game, scored: Scored, percents: tuple[int, ...] = STEPS) -> FloatArray:
    """(N, K) log-odds without the most influential ``percents`` of the events."""
    masks = [
        ~keep_first(order, [count_of(percent, len(order)) for percent in percents])
        for order in scored.orders
    ]
    return np.stack(game.values(masks))


def insertion_values(game: Game, scored: Scored, percents: tuple[int, ...] = STEPS) -> FloatArray:
    """(N, K) log-odds with the most influential ``percents`` of the events alone."""
    masks = [
        keep_first(order, [count_of(percent, len(order)) for percent in percents])
        for order in scored.orders
    ]
    return np.stack(game.values(masks))


def _whole(game: Game) -> FloatArray:
    return game.probabilities(game.full)


def _without(game: Game, scored: Scored, percents: tuple[int, ...]) -> FloatArray:
    return game.probabilities(deletion_values(game, scored, percents))


def _alone(game: Game, scored: Scored, percents: tuple[int, ...]) -> FloatArray:
    return game.probabilities(insertion_values(game, scored, percents))


RISE = "Petsiuk et al. 2018, arXiv:1806.07421"


@metric(
    "deletion_auc",
    better="low",
    equation="mean over k = 10, 20, ..., 100% of f(x without T_k)",
    paper=RISE,
    lies="Long removals leave histories that no user has; the curve's end is the same for all.",
)
def deletion_auc(game: Game, scored: Scored) -> FloatArray:
    """Log-odds left over while the most influential events go first."""
    return deletion_values(game, scored).mean(axis=1)


@metric(
    "insertion_auc",
    better="high",
    equation="mean over k = 10, 20, ..., 100% of f(x_{T_k})",
    paper=RISE,
    lies="As deletion; the first events alone are a very short history.",
)
def insertion_auc(game: Game, scored: Scored) -> FloatArray:
    """Log-odds won while the most influential events come first."""
    return insertion_values(game, scored).mean(axis=1)


@metric(
    "abpc",
    better="high",
    equation="mean over k = 10, ..., 100% of f(x without the k least influential) - "
    "f(x without T_k)",
    paper="Ancona et al. 2018, arXiv:1711.06104; the area between perturbation curves",
    lies="As deletion. Scores that are right about extremes alone still do well.",
)
def abpc(game: Game, scored: Scored) -> FloatArray:
    """Area between removing the least influential first and the most influential first."""
    masks = [
        keep_first(order, [len(order) - count_of(percent, len(order)) for percent in STEPS])
        for order in scored.orders
    ]
    least_first = np.stack(game.values(masks))
    return least_first.mean(axis=1) - deletion_auc(game, scored)


@metric(
    "lds",
    better="high",
    equation="Spearman over held-out random S of f(x_S) and the sum of a over S",
    paper="Park et al. 2023, arXiv:2303.14186; for contexts: Cohen-Wang et al. 2024, "
    "arXiv:2409.00729",
    lies="Sizes of sets vary, so scores that are all positive foretell that more is worth more: "
    "compare with random. A surrogate fitted to such sets is at home here. Where effects "
    "interact, no sum reaches 1.",
)
def lds(game: Game, scored: Scored) -> FloatArray:
    """Linear datamodelling score."""
    sums = [mask @ row for mask, row in zip(game.held_out, scored.scores, strict=True)]
    pairs = zip(game.held_out_values, sums, strict=True)
    return np.array([spearman(value, total) for value, total in pairs])


@metric(
    "infidelity",
    better="low",
    equation="mean over held-out random I of (sum of a over I - (f(x) - f(x without I)))^2",
    paper="Yeh et al. 2019, arXiv:1901.09392",
    lies="Squared log-odds: a few users with large effects rule the mean. Shares have no units "
    "and get none.",
)
def infidelity(game: Game, scored: Scored) -> FloatArray:
    """Squared error of the drop that scores promise; nan for shares."""
    if not scored.in_target_units:
        return np.full(len(scored.scores), np.nan)
    rows = zip(game.held_out, game.held_out_values, game.full, scored.scores, strict=True)
    return np.array(
        [
            np.mean((~kept @ row - (full - value)) ** 2) if len(kept) else np.nan
            for kept, value, full, row in rows
        ]
    )


CUTOFF = 10
"""K: places of the list in which the target still counts as recommended."""
DELETED = (1, 5)
"""k: events deleted."""
LXR = "Barkan et al. 2024 (LXR), doi:10.1145/3589334.3645560"


def _still_listed(game: Game, scored: Scored, count: int, *, most: bool) -> FloatArray:
    """(N,) 1 where the target stays in the top K without the ``count`` most / least influential.

    Histories of ``count`` events or fewer would be deleted whole and get nan.
    """
    orders = scored.orders if most else [order[::-1] for order in scored.orders]
    masks = [~keep_first(order, [count]) for order in orders]
    listed = (game.each(game.ranks, masks) <= CUTOFF).astype(np.float64)
    return np.where(np.array(game.sizes) > count, listed, np.nan)


def _register(count: int) -> None:
    lies = "A target that leaves the list with any removal does so for every method."

    @metric(
        f"pos@{CUTOFF},{count}",
        better="low",
        equation=f"share of targets in the top {CUTOFF} without the {count} most influential",
        paper=LXR,
        lies=lies,
    )
    def pos(game: Game, scored: Scored) -> FloatArray:
        return _still_listed(game, scored, count, most=True)

    @metric(
        f"neg@{CUTOFF},{count}",
        better="high",
        equation=f"share of targets in the top {CUTOFF} without the {count} least influential",
        paper=LXR,
        lies=lies,
    )
    def neg(game: Game, scored: Scored) -> FloatArray:
        return _still_listed(game, scored, count, most=False)


for _count in DELETED:
    _register(_count)


@metric(
    "counterfactual_share",
    better="high",
    equation="share of histories where some set of the k most influential events, k at most "
    "largest_set, flips the first recommendation when removed",
    paper="Tran et al. 2021, arXiv:2105.05008; verified by running the model",
    lies="Recommendations near a tie flip with anything.",
)
def counterfactual_share(game: Game, scored: Scored) -> FloatArray:
    """1 where removing the most influential events flips the recommendation, else 0."""
    sizes = flip_sizes(game, scored)
    return np.where(np.isnan(sizes), np.nan, sizes > 0)


@metric(
    "counterfactual_size",
    better="low",
    equation="events in the smallest such set, over the histories that flip",
    paper="Tran et al. 2021, arXiv:2105.05008; verified by running the model",
    lies="A mean over flipped histories alone: read it beside the share.",
)
def counterfactual_size(game: Game, scored: Scored) -> FloatArray:
    """Events of the smallest flipping set; nan where none flips."""
    sizes = flip_sizes(game, scored)
    return np.where(sizes > 0, sizes, np.nan)


def flip_sizes(game: Game, scored: Scored) -> FloatArray:
    """(N,) fewest of the most influential events whose removal flips the first place; 0: none.

    A set flips when the target, first with all events, is first no longer. A target that was not
    first (a named item) cannot be flipped and gives nan.
    """
    masks = [
        np.concatenate(
            [
                np.ones((1, len(order)), dtype=bool),
                ~keep_first(order, range(1, min(game.largest_set, len(order)) + 1)),
            ]
        )
        for order in scored.orders
    ]
    return np.array([_first_flip(ranks) for ranks in game.ranks(masks)])


def _first_flip(ranks: FloatArray) -> float:
    """Place of the first rank above 1 in the (k + 1,) ranks without 0, 1, ..., k events."""
    if ranks[0] > 1:
        return np.nan
    flipped = np.flatnonzero(ranks > 1)
    return float(flipped[0]) if len(flipped) else 0.0


SENSITIVITY, RANDOMISATION = "sensitivity", "randomisation"


@metric(
    SENSITIVITY,
    better="low",
    equation="max over jittered gaps of |a' - a| / |a|, Euclidean norms",
    paper="max-sensitivity: Yeh et al. 2019, arXiv:1901.09392",
    lies="Scores that do not read the model are the most stable of all. It counts the model's own "
    "change of mind as the method's. Templates without a gap have none, nor those that "
    "read the hour or the weekday.",
)
def sensitivity(game: Game, scored: Scored) -> FloatArray:
    """Largest relative change of the scores; nan where they are all zero or none were jittered."""
    norms = np.array([np.linalg.norm(row) for row in scored.scores])
    if not scored.jittered:
        return np.full(len(norms), np.nan)
    changes = [
        [np.linalg.norm(b - a) for a, b in zip(scored.scores, draw, strict=True)]
        for draw in scored.jittered
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms > 0, np.max(changes, axis=0) / norms, np.nan)


@metric(
    RANDOMISATION,
    better="zero",
    equation="Spearman of the scores and those of the model with scrambled weights",
    paper="Adebayo et al. 2018, arXiv:1810.03292",
    lies="Near zero is necessary, not sufficient: noise that reads the model passes. One that "
    "stays near 1 (recency, random draws of the user) does not read the model.",
)
def randomisation(game: Game, scored: Scored) -> FloatArray:
    """Rank correlation that should be lost with the weights; see `sanity.scrambled`."""
    if scored.scrambled is None:
        return np.full(len(scored.scores), np.nan)
    pairs = zip(scored.scores, scored.scrambled, strict=True)
    return np.array([spearman(trained, scrambled) for trained, scrambled in pairs])


TOP = 3
"""Events compared as the most influential ones."""
SHAPLEY = "Shapley 1953"
SLOW = "Needs 2^E evaluations a history of E events, so only short histories are measured."


@metric(
    "completeness_gap",
    better="low",
    equation="|sum of a - (f(x) - f(baseline))| / |f(x) - f(baseline)|, the method's own baseline",
    paper="Sundararajan et al. 2017, arXiv:1703.01365",
    lies="Scores that are made to add up have none, right or wrong. Large where f hardly moved. "
    "Shares have no units and get none.",
)
def completeness_gap(game: Game, scored: Scored) -> FloatArray:
    """What the scores lack to the whole change of the target; nan for shares."""
    moved = game.full - scored.base
    total = np.array([row.sum() for row in scored.scores]) + scored.prompt
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.where(moved == 0, np.nan, np.abs(total - moved) / np.abs(moved))
    return gaps if scored.in_target_units else np.full(len(gaps), np.nan)


@metric(
    "exact_rmse",
    better="low",
    equation="root of the mean over events of (a - exact Shapley value)^2",
    paper=SHAPLEY,
    lies=f"{SLOW} A method that estimates something else is not wrong for being far.",
    default=False,
)
def exact_rmse(game: Game, scored: Scored) -> FloatArray:
    """Distance to exact Shapley values, log-odds; nan for shares and long histories."""
    if not scored.in_target_units:
        return np.full(len(scored.scores), np.nan)
    return _against(game, scored, lambda exact, row: float(np.sqrt(np.mean((row - exact) ** 2))))


@metric(
    "exact_spearman",
    better="high",
    equation="Spearman over events of a and the exact Shapley values",
    paper=SHAPLEY,
    lies=SLOW,
    default=False,
)
def exact_spearman(game: Game, scored: Scored) -> FloatArray:
    """Rank correlation with exact Shapley values."""
    return _against(game, scored, spearman)


@metric(
    f"exact_top{TOP}",
    better="high",
    equation=f"share of the {TOP} events of largest exact Shapley value among the {TOP} of "
    "largest a",
    paper=SHAPLEY,
    lies=f"{SLOW} Chance alone gives {TOP} / E.",
    default=False,
)
def exact_top(game: Game, scored: Scored) -> FloatArray:
    """Overlap of the most supporting events with those of exact Shapley values."""
    theirs = game.orders([np.nan_to_num(row) for row in exact_shapley(game)])
    overlaps = [
        len(set(ours[:TOP]) & set(exact[:TOP])) / min(TOP, len(ours))
        for ours, exact in zip(scored.orders, theirs, strict=True)
    ]
    short = np.array(game.sizes) <= game.exact_events
    return np.where(short, overlaps, np.nan)


def exact_shapley(game: Game) -> list[FloatArray]:
    """N arrays (E,) of exact Shapley values, all nan for histories above ``exact_events``.

    ``phi_i = sum over S without i of |S|! (E - |S| - 1)! / E! (f(S and i) - f(S))``.
    """
    short = [size <= game.exact_events for size in game.sizes]
    masks = [
        numerics.every_coalition(size) if small else np.zeros((0, size), dtype=bool)
        for size, small in zip(game.sizes, short, strict=True)
    ]
    return [
        numerics.exact_shapley(value) if small else np.full(size, np.nan)
        for value, size, small in zip(game.values(masks), game.sizes, short, strict=True)
    ]


def _against(
    game: Game, scored: Scored, compare: Callable[[FloatArray, FloatArray], float]
) -> FloatArray:
    pairs = zip(exact_shapley(game), scored.scores, strict=True)
    return np.array([np.nan if np.isnan(e).any() else compare(e, row) for e, row in pairs])
