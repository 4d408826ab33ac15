"""Faithfulness metrics: what each measures, its equation, paper and limitations, as data.

In equations x is the history, a a score, f the target in log-odds, p its probability and T_k the k
events of largest score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from llm_influence import numerics
from llm_influence.errors import ExplanationError, unknown
from llm_influence.faithfulness.games import STEPS, Game, MethodScores, count_of, curve, keep_first
from llm_influence.types import FloatArray

Better = Literal["high", "low", "zero"]
Measure = Callable[[Game, MethodScores], FloatArray]

SHARE = 20
"""Percentage of events that metrics of a single size call the most influential."""
CUTOFF = 10
"""K: length of the list in which the target counts as recommended."""
DELETED = (1, 5)
"""Numbers of events deleted for the list metrics."""
TOP = 3
"""Number of events compared as the most influential ones."""
SENSITIVITY, RANDOMISATION = "sensitivity", "randomisation"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric; ``equation``, ``paper`` and ``limitations`` (when it misleads) are plain text."""

    name: str
    better: Better
    measure: Measure
    """``(game, method) -> (N,)`` values, nan where the metric is not defined."""
    equation: str
    paper: str
    limitations: str
    default: bool = True
    """Whether it is measured unless metrics are named."""


def find_metrics(names: Sequence[str] | None) -> list[Metric]:
    """The metrics with these names; None: those that are measured by default."""
    if names is None:
        return [metric for metric in METRICS.values() if metric.default]
    for name in names:
        if name not in METRICS:
            raise unknown(ExplanationError, "metric", name, METRICS, where="metrics")
    return [METRICS[name] for name in dict.fromkeys(names)]


def spearman(values: FloatArray, scores: FloatArray) -> float:
    """`numerics.spearman`; 0 where the scores are constant, since they predict nothing."""
    return numerics.spearman(values, scores, if_scores_constant=0.0)


def lost_probability(
    game: Game, method: MethodScores, *, keep: bool, percents: tuple[int, ...]
) -> FloatArray:
    """(N,) probability lost along a `games.curve`, averaged over its points.

    Without the most influential events this is comprehensiveness, with them alone sufficiency.
    """
    left = game.probabilities(curve(game, method, keep=keep, percents=percents))
    return game.probabilities(game.full) - left.mean(axis=1)


def curve_area(game: Game, method: MethodScores, *, keep: bool) -> FloatArray:
    """(N,) mean log-odds along a `games.curve`."""
    return curve(game, method, keep=keep).mean(axis=1)


def area_between_curves(game: Game, method: MethodScores) -> FloatArray:
    """(N,) area between deleting the least influential first and the most influential first."""
    left = [[len(order) - count_of(step, len(order)) for step in STEPS] for order in method.orders]
    masks = [keep_first(order, counts) for order, counts in zip(method.orders, left, strict=True)]
    least_first = np.stack(game.values(masks))
    return least_first.mean(axis=1) - curve_area(game, method, keep=False)


def linear_datamodelling_score(game: Game, method: MethodScores) -> FloatArray:
    """(N,) rank correlation of values of held-out sets and sums of scores over these sets."""
    sums = [mask @ row for mask, row in zip(game.held_out, method.scores, strict=True)]
    pairs = zip(game.held_out_values, sums, strict=True)
    return np.array([spearman(values, total) for values, total in pairs])


def infidelity(game: Game, method: MethodScores) -> FloatArray:
    """(N,) squared error of the drop that scores predict; nan for shares."""
    if not method.in_target_units:
        return np.full(len(method.scores), np.nan)
    rows = zip(game.held_out, game.held_out_values, game.full, method.scores, strict=True)
    errors = ((kept, ~kept @ row - (full - values)) for kept, values, full, row in rows)
    return np.array([np.mean(error**2) if len(kept) else np.nan for kept, error in errors])


def still_listed(game: Game, method: MethodScores, *, count: int, most: bool) -> FloatArray:
    """(N,) 1 where the target is in the top K without the ``count`` most / least influential.

    Histories of ``count`` events or fewer would be deleted whole and give nan.
    """
    orders = method.orders if most else [order[::-1] for order in method.orders]
    masks = [~keep_first(order, [count]) for order in orders]
    listed = (game.one(game.ranks, masks) <= CUTOFF).astype(np.float64)
    return np.where(np.array(game.sizes) > count, listed, np.nan)


def counterfactual_size(game: Game, method: MethodScores) -> FloatArray:
    """(N,) fewest of the most influential events whose removal changes the first place; 0: none.

    The target is first with all events and no longer first without the set. A target that was not
    first (a named item) gives nan.
    """
    most = game.largest_set
    masks = [~keep_first(order, range(min(most, len(order)) + 1)) for order in method.orders]
    sizes = []
    for ranks in game.ranks(masks):  # (k + 1,) without 0, 1, ..., k events
        changed = np.flatnonzero(ranks > 1)
        size = float(changed[0]) if len(changed) else 0.0
        sizes.append(np.nan if ranks[0] > 1 else size)
    return np.array(sizes)


def has_counterfactual(game: Game, method: MethodScores) -> FloatArray:
    """(N,) 1 where removing the most influential events changes the recommendation, else 0."""
    sizes = counterfactual_size(game, method)
    return np.where(np.isnan(sizes), np.nan, sizes > 0)


def smallest_counterfactual(game: Game, method: MethodScores) -> FloatArray:
    """(N,) number of events of the smallest counterfactual set; nan where there is none."""
    sizes = counterfactual_size(game, method)
    return np.where(sizes > 0, sizes, np.nan)


def sensitivity(game: Game, method: MethodScores) -> FloatArray:
    """(N,) largest relative change of the scores; nan where all are zero or none were jittered."""
    norms = np.array([np.linalg.norm(row) for row in method.scores])
    if not method.jittered:
        return np.full(len(norms), np.nan)
    draws = [zip(method.scores, draw, strict=True) for draw in method.jittered]
    changes = [[np.linalg.norm(after - before) for before, after in draw] for draw in draws]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms > 0, np.max(changes, axis=0) / norms, np.nan)


def randomisation(game: Game, method: MethodScores) -> FloatArray:
    """(N,) rank correlation with the scores of a model with scrambled weights."""
    if method.scrambled is None:
        return np.full(len(method.scores), np.nan)
    pairs = zip(method.scores, method.scrambled, strict=True)
    return np.array([spearman(trained, scrambled) for trained, scrambled in pairs])


def completeness_gap(game: Game, method: MethodScores) -> FloatArray:
    """(N,) relative difference of the scores' sum and the change of the target; nan for shares."""
    moved = game.full - method.base
    total = np.array([row.sum() for row in method.scores]) + method.prompt
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.where(moved == 0, np.nan, np.abs(total - moved) / np.abs(moved))
    return gaps if method.in_target_units else np.full(len(gaps), np.nan)


def exact_rmse(game: Game, method: MethodScores) -> FloatArray:
    """(N,) distance to exact Shapley values, log-odds; nan for shares and long histories."""
    if not method.in_target_units:
        return np.full(len(method.scores), np.nan)
    return _against_exact(game, method, lambda exact, a: float(np.sqrt(np.mean((a - exact) ** 2))))


def exact_top(game: Game, method: MethodScores) -> FloatArray:
    """(N,) overlap of the most supporting events with those of exact Shapley values."""
    rows = zip(game.exact, game.sizes, strict=True)
    exact = game.orders([np.zeros(size) if row is None else row for row, size in rows])
    pairs = zip(method.orders, exact, strict=True)
    overlaps = [len({*a[:TOP]} & {*b[:TOP]}) / min(TOP, len(a)) for a, b in pairs]
    return np.where([row is not None for row in game.exact], overlaps, np.nan)


def _against_exact(
    game: Game, method: MethodScores, compare: Callable[[FloatArray, FloatArray], float]
) -> FloatArray:
    pairs = zip(game.exact, method.scores, strict=True)
    return np.array([np.nan if exact is None else compare(exact, row) for exact, row in pairs])


ERASER = "DeYoung et al. 2020, arXiv:1911.03429"
AOPC = f"{ERASER}; AOPC: Samek et al. 2017, arXiv:1509.06321"
RISE = "Petsiuk et al. 2018, arXiv:1806.07421"
LXR = "Barkan et al. 2024 (LXR), doi:10.1145/3589334.3645560"
COUNTERFACTUAL = "Tran et al. 2021, arXiv:2105.05008; verified by running the model"
SHAPLEY = "Shapley 1953"
_LISTS: tuple[tuple[str, Better, str], ...] = (("pos", "low", "most"), ("neg", "high", "least"))
SLOW = "Needs 2^E evaluations for a history of E events, so only short histories are measured."

_METRICS = (
    Metric(
        f"comprehensiveness@{SHARE}",
        "high",
        partial(lost_probability, keep=False, percents=(SHARE,)),
        equation=f"p(x) - p(x without T_k), k = {SHARE}% of the events",
        paper=ERASER,
        limitations="A probability that is small with all events cannot fall much.",
    ),
    Metric(
        f"sufficiency@{SHARE}",
        "low",
        partial(lost_probability, keep=True, percents=(SHARE,)),
        equation=f"p(x) - p(x_{{T_k}}), k = {SHARE}% of the events",
        paper=ERASER,
        limitations="A set can have a higher value than the whole history, because opposing events "
        "are removed as well.",
    ),
    Metric(
        "comprehensiveness_aopc",
        "high",
        partial(lost_probability, keep=False, percents=STEPS),
        equation="mean over k = 10, 20, ..., 100% of p(x) - p(x without T_k)",
        paper=AOPC,
        limitations="Users with confident predictions weigh more than all others.",
    ),
    Metric(
        "sufficiency_aopc",
        "low",
        partial(lost_probability, keep=True, percents=STEPS),
        equation="mean over k = 10, 20, ..., 100% of p(x) - p(x_{T_k})",
        paper=AOPC,
        limitations="As sufficiency; and the training data has no such short histories.",
    ),
    Metric(
        "deletion_auc",
        "low",
        partial(curve_area, keep=False),
        equation="mean over k = 10, 20, ..., 100% of f(x without T_k)",
        paper=RISE,
        limitations="Long deletions leave histories that no user has. The end of the curve is the "
        "same for all methods.",
    ),
    Metric(
        "insertion_auc",
        "high",
        partial(curve_area, keep=True),
        equation="mean over k = 10, 20, ..., 100% of f(x_{T_k})",
        paper=RISE,
        limitations="As deletion; the first events alone are a very short history.",
    ),
    Metric(
        "abpc",
        "high",
        area_between_curves,
        equation="mean over k = 10, ..., 100% of f(x without the k least influential) - "
        "f(x without T_k)",
        paper="Ancona et al. 2018, arXiv:1711.06104; the area between perturbation curves",
        limitations="As deletion. Scores that are right about the extremes alone still do well.",
    ),
    Metric(
        "lds",
        "high",
        linear_datamodelling_score,
        equation="Spearman over held-out random S of f(x_S) and the sum of a over S",
        paper="Park et al. 2023, arXiv:2303.14186; for contexts: Cohen-Wang et al. 2024, "
        "arXiv:2409.00729",
        limitations="Sets differ in size, so scores that are all positive predict that larger sets "
        "have larger values: compare with random. It favours surrogates that are fitted to such "
        "sets. Where events interact, no sum reaches 1.",
    ),
    Metric(
        "infidelity",
        "low",
        infidelity,
        equation="mean over held-out random I of (sum of a over I - (f(x) - f(x without I)))^2",
        paper="Yeh et al. 2019, arXiv:1901.09392",
        limitations="Squared log-odds: a few users with large effects dominate the mean. Shares "
        "have no units and get none.",
    ),
    *(
        Metric(
            f"{name}@{CUTOFF},{count}",
            better,
            partial(still_listed, count=count, most=name == "pos"),
            equation=f"share of targets in the top {CUTOFF} without the {count} {which} "
            "influential",
            paper=LXR,
            limitations="A target that leaves the list after any removal does so for every method.",
        )
        for count in DELETED
        for name, better, which in _LISTS
    ),
    Metric(
        "counterfactual_share",
        "high",
        has_counterfactual,
        equation="share of histories where removing some set of the k most influential events, k "
        "at most largest_set, changes the first recommendation",
        paper=COUNTERFACTUAL,
        limitations="Any removal changes a recommendation that is close to a tie.",
    ),
    Metric(
        "counterfactual_size",
        "low",
        smallest_counterfactual,
        equation="number of events of the smallest such set, over the histories that have one",
        paper=COUNTERFACTUAL,
        limitations="A mean over histories with such a set alone: read it beside the share.",
    ),
    Metric(
        SENSITIVITY,
        "low",
        sensitivity,
        equation="max over jittered gaps of |a' - a| / |a|, Euclidean norms",
        paper="max-sensitivity: Yeh et al. 2019, arXiv:1901.09392",
        limitations="Scores that do not read the model are the most stable of all. A change of the "
        "model's prediction counts as the method's change. Not defined for templates without a "
        "gap, nor for templates with the hour or the weekday.",
    ),
    Metric(
        RANDOMISATION,
        "zero",
        randomisation,
        equation="Spearman of the scores and those of the model with scrambled weights",
        paper="Adebayo et al. 2018, arXiv:1810.03292",
        limitations="Near zero is necessary, not sufficient: noise that reads the model passes. A "
        "method near 1 (recency, random draws of the user) does not read the model.",
    ),
    Metric(
        "completeness_gap",
        "low",
        completeness_gap,
        equation="|sum of a - (f(x) - f(baseline))| / |f(x) - f(baseline)|, the method's own "
        "baseline",
        paper="Sundararajan et al. 2017, arXiv:1703.01365",
        limitations="Scores that are made to add up have no gap, right or wrong. Large where f "
        "hardly moves. Shares have no units and get none.",
    ),
    Metric(
        "exact_rmse",
        "low",
        exact_rmse,
        equation="root of the mean over events of (a - exact Shapley value)^2",
        paper=SHAPLEY,
        limitations=f"{SLOW} A method that estimates something else is not wrong if it is far.",
        default=False,
    ),
    Metric(
        "exact_spearman",
        "high",
        partial(_against_exact, compare=spearman),
        equation="Spearman over events of a and the exact Shapley values",
        paper=SHAPLEY,
        limitations=SLOW,
        default=False,
    ),
    Metric(
        f"exact_top{TOP}",
        "high",
        exact_top,
        equation=f"share of the {TOP} events of largest exact Shapley value among the {TOP} of "
        "largest a",
        paper=SHAPLEY,
        limitations=f"{SLOW} Chance alone gives {TOP} / E.",
        default=False,
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
"""All metrics by name, in the order of the documentation."""
