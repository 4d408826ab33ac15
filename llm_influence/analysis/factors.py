"""Which properties of events go with their influence: ranking, effects, pairs of factors, weights.

Every event is one observation. Effects come from a regression of all factors at once over all
events (`regression`). Importance, without a functional form, comes from shuffled columns of boosted
trees. Weights of behaviours compare what one event counts at equal age.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from llm_influence.analysis.decay import behavior_weights
from llm_influence.analysis.levels import Batch, CodedEvents, Factor, factors_of
from llm_influence.analysis.output import (
    ORANGE,
    Analysis,
    Record,
    Records,
    Table,
    aligned,
    closing_lines,
    draw_rows,
    finish_rows,
    new_figure,
    numbers,
    panels,
    points,
    with_interval,
)
from llm_influence.analysis.regression import Fit, Interaction, fit, gather, interactions
from llm_influence.analysis.statistics import critical, holm
from llm_influence.analysis.strength import behavior_strengths, shares_of_chosen
from llm_influence.analysis.tables import CHOSEN, InfluenceView
from llm_influence.config.analyses import FactorOptions
from llm_influence.errors import DataError
from llm_influence.numerics import bootstrap_interval
from llm_influence.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL = ("behavior", "gap", "recency", "session", "value")
"""Default factors of every table; columns of the item and user tables are added."""
LEAST_USERS = 10
SHOWN = {
    "strength": ("strength", "strength_low", "strength_high", "half_life_hours"),
    "weights": ("weight", "low", "high"),
    "share_of_chosen": ("share_of_chosen", "share_low", "share_high", "share_of_events"),
}
"""Columns of the tables of behaviours in the terminal."""
MOST_PAIRED = 6  # so many factors with the largest spread are paired with each other


def analyze_factors(view: InfluenceView, options: FactorOptions | None = None) -> Analysis:
    """Rank properties of events by how far they move influence.

    Args:
        view: The tables, with at least `LEAST_USERS` users.
        options: Factors, response and tests. Default: `FactorOptions`.

    Returns:
        Tables ``ranking``, ``effects``, ``interactions`` and ``interaction_cells``; ``strength`` of
        behaviours if the targets were drawn, else ``weights`` and ``share_of_chosen``.

    Raises:
        DataError: There are too few users, an unknown column, a column with one value, or all
            scores are equal.
    """
    options = options or FactorOptions()
    if view.drawn:
        options = replace(options, response="size")  # their mean score is 0 by construction
    view.require_users(LEAST_USERS, "standard errors are over users")
    factors, left_out = _factors(view, options.factors)
    coded = CodedEvents(view, factors, options.response)
    moments = gather(coded.batches(), [len(factor.levels) for factor in factors])
    if moments.variance <= 1e-12 * moments.squares / moments.events:
        raise DataError(
            f"every {options.response} is {moments.total / moments.events:g}",
            where="influence tables",
            expected="scores that differ",
            fix="explain with a method that gives events different scores",
        )
    fitted = fit(moments, coded.batches(), view.users)
    trees = permutation_importance(coded, sample=options.sample, seed=options.seed)
    ranking = _ranking(factors, fitted, trees, options.alpha)
    place = {factor.name: number for number, factor in enumerate(factors)}
    widest = sorted(place[record["factor"]] for record in ranking[:MOST_PAIRED])
    paired = interactions(fitted, coded.batches(), list(combinations(widest, 2)))
    effects = _effects(factors, fitted, trees)
    tables = {
        "ranking": Table(ranking, draw_ranking(ranking)),
        "effects": Table(effects, draw_effects(effects)),
        **_interaction_tables(factors, paired, options.alpha),
        **_behavior_tables(view, options.match),
    }
    facts = view.facts(options) | {
        "left_out": left_out,
        "regression_r_squared": fitted.r_squared,
        "trees_r_squared": trees.r_squared,
        "sample_events": trees.events,
        "sample_users": trees.users,
    }
    return Analysis("factors", facts, tables, _shown(facts, tables))


def _factors(
    view: InfluenceView, names: tuple[str, ...] | None
) -> tuple[list[Factor], dict[str, str]]:
    """The factors, and why other columns are none."""
    side = [name for name in view.columns if name.startswith(("item:", "match:", "user:"))]
    is_number = {name.partition(":")[2] for name in side if view.columns[name].number}
    usual = [n for n in side if not (n.startswith("match:") and n.partition(":")[2] in is_number)]
    required = names is not None
    factors, left_out = factors_of(view, names or (*USUAL, *usual), required=required)
    if not factors:
        raise DataError(
            "no factor with two levels",
            where="influence tables",
            expected="at least one column in which events differ",
            fix="name columns with --factor",
        )
    return factors, left_out


def _ranking(factors: list[Factor], fitted: Fit, trees: Importance, alpha: float) -> list[Record]:
    """One record per factor, the largest spread first."""
    p_values = [fitted.wald(place) for place in range(len(factors))]
    records = []
    for place, (factor, corrected) in enumerate(zip(factors, holm(p_values), strict=True)):
        spread, low, high = fitted.spread(place)
        share, share_low, share_high = trees.shares[place]
        records.append(
            {
                "factor": factor.name,
                "levels": int((fitted.moments.shares[fitted.moments.blocks[place]] > 0).sum()),
                "spread": spread,
                "spread_low": low,
                "spread_high": high,
                "p_value": p_values[place],
                "p_holm": float(corrected),
                "matters": bool(corrected <= alpha),
                "permutation_share": float(share),
                "permutation_low": float(share_low),
                "permutation_high": float(share_high),
            }
        )
    return sorted(records, key=lambda record: (-record["spread"], record["factor"]))


def _effects(factors: list[Factor], fitted: Fit, trees: Importance) -> list[Record]:
    """One record per level that occurs, in order."""
    moments, (values, errors) = fitted.moments, fitted.effects()
    records = []
    for place, (factor, block) in enumerate(zip(factors, moments.blocks, strict=True)):
        for code, level in enumerate(factor.levels):
            at = block.start + code
            if not moments.counts[at, at]:
                continue
            records.append(
                {
                    "factor": factor.name,
                    "level": level,
                    "events": int(moments.counts[at, at]),
                    "mean": float(moments.sums[at] / moments.counts[at, at]),
                    "effect": float(values[at]),
                    "standard_error": float(errors[at]),
                    **with_interval(
                        "effect", values[at], float(critical(fitted.users)) * errors[at]
                    ),
                    "partial_dependence": float(trees.dependence[place][code]),
                }
            )
    return records


def _interaction_tables(
    factors: list[Factor], paired: list[Interaction], alpha: float
) -> dict[str, Table]:
    """The pairs, the largest spread first, and the cells of significant pairs."""
    if not paired:
        return {}
    rows: list[Record] = []
    cells: list[Record] = []
    corrected = holm([interaction.p_value for interaction in paired])
    by_spread = sorted(zip(paired, corrected, strict=True), key=lambda two: -two[0].spread[0])
    for interaction, p in by_spread:
        first, second = (factors[place] for place in interaction.pair)
        spread, low, high = interaction.spread
        names = {"first": first.name, "second": second.name}
        tested = {"p_value": interaction.p_value, "p_holm": float(p), "matters": bool(p <= alpha)}
        rows.append({**names, "spread": spread, "low": low, "high": high, **tested})
        if p <= alpha:
            cells += _cells(interaction, first, second)
    pairs = [f"{r['first']} x {r['second']}" + ("" if r["matters"] else " (n.s.)") for r in rows]
    label = "standard deviation of the added effect (units of influence)"
    tables = {"interactions": Table(rows, draw_rows(rows, ("spread", "low", "high"), pairs, label))}
    return tables | ({"interaction_cells": Table(cells)} if cells else {})


def _cells(interaction: Interaction, first: Factor, second: Factor) -> Iterator[Record]:
    for row, column in zip(*np.nonzero(interaction.counts), strict=True):
        yield {
            "first": first.name,
            "first_level": first.levels[row],
            "second": second.name,
            "second_level": second.levels[column],
            "events": int(interaction.counts[row, column]),
            "effect": float(interaction.effects[row, column]),
        }


def _behavior_tables(view: InfluenceView, match: str | None) -> dict[str, Table]:
    """Strength of each behaviour from drawn targets; else its weight and share of the chosen."""
    if view.drawn:
        rows = behavior_strengths(view, match)
        ends = ("strength", "strength_low", "strength_high")
        return _behavior_table("strength", rows, ends, "strength at age 0, the largest is 1")
    measured = [{**row, "measures": CHOSEN["measures"]} for row in behavior_weights(view, match)]
    label = "weight of one event at equal age in what was chosen, the largest is 1"
    weights = _behavior_table("weights", measured, ("weight", "low", "high"), label)
    shares = shares_of_chosen(view, match)
    ends = ("share_of_chosen", "share_low", "share_high")
    return weights | _behavior_table("share_of_chosen", shares, ends, "share of what was chosen")


def _behavior_table(
    key: str, rows: list[Record], columns: tuple[str, str, str], label: str
) -> dict[str, Table]:
    if len(rows) < 2:
        return {}
    return {key: Table(rows, draw_rows(rows, columns, [str(r["behavior"]) for r in rows], label))}


def _shown(facts: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    lines = [
        f"{facts['events']:,} events of {facts['users']:,} users, {facts['method']}; all factors "
        f"explain {facts['regression_r_squared']:.1%} of the variance, trees "
        f"{facts['trees_r_squared']:.1%} for unseen users"
    ]
    columns = ["factor", "spread", "spread_low", "spread_high", "p_holm", "matters"]
    lines += aligned(tables["ranking"].records, [*columns, "permutation_share"])
    rows = tables["interactions"].records if "interactions" in tables else []
    pairs = [row for row in rows if row["matters"]][:5]
    if pairs:
        lines += ["", *aligned(pairs, ["first", "second", "spread", "low", "high", "p_holm"])]
    for key, shown in SHOWN.items():
        if key in tables:
            lines += ["", *aligned(tables[key].records, ["behavior", *shown])]
    return lines + closing_lines(facts)


def draw_ranking(ranking: Records) -> Figure:
    """Two panels of the same factors: spread of effects, and permutation importance."""
    figure = new_figure(10, 1.3 + 0.36 * len(ranking))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [str(row["factor"]) + ("" if row["matters"] else " (n.s.)") for row in ranking]
    points(left, ranking, ("spread", "spread_low", "spread_high"))
    columns = ("permutation_share", "permutation_low", "permutation_high")
    points(right, ranking, columns, color=ORANGE, marker="s")
    finish_rows(left, names, "standard deviation of its effects (units of influence)")
    finish_rows(right, names, "permutation importance (share of variance)")
    return figure


def draw_effects(effects: Records) -> Figure:
    """A panel for each factor: effects with intervals, and partial dependence of the trees."""
    most = max(len(list(rows)) for _, rows in groupby(effects, key=lambda row: row["factor"]))
    figure, drawn = panels(effects, 4.4, 1.3 + 0.24 * most, 3)
    for axis, factor, rows in drawn:
        effect = points(axis, rows, ("effect", "low", "high"))
        curve = numbers(rows, "partial_dependence")
        style = {"color": ORANGE, "markersize": 5, "markerfacecolor": "none"}
        (trees,) = axis.plot(curve, np.arange(len(rows)), "s", **style)
        finish_rows(axis, [str(row["level"]) for row in rows], "")
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(factor, loc="left", fontsize=10, parse_math=False)
    figure.legend(
        [effect, trees],
        ["regression effect, 95% interval over users", "partial dependence of the trees"],
        loc="outside lower center",
        ncols=2,
        title="change of influence against the average event",
        fontsize=8,
        title_fontsize=9,
        frameon=False,
    )
    return figure


# --- permutation importance ------------------------------------------------------------------

REPEATS = 5
MOST_DEPENDENCE = 10_000  # partial dependence averages over so many events
DRAWS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """Importance of F factors for boosted trees."""

    # (F, 3) increase of the squared error when a factor is shuffled, as a share of the
    # response's variance, with the ends of its 95% bootstrap interval over users
    shares: FloatArray
    r_squared: float  # Share of the variance that the trees explain for unseen users
    # F arrays (L,), mean prediction at each level minus the mean of all events
    dependence: list[FloatArray]
    events: int  # Events of the sample
    users: int  # Users of the sample


def permutation_importance(coded: CodedEvents, *, sample: int, seed: int) -> Importance:
    """Train trees on half of a sample of users, and shuffle factors on the other half.

    Importance is from Breiman 2001 (doi:10.1023/A:1010933404324) and Fisher, Rudin and Dominici
    2019 (arXiv:1801.01489), partial dependence from Friedman 2001 (doi:10.1214/aos/1013203451).
    Whole users are drawn, so ``sample`` is an approximate number of events.
    """
    random, view = np.random.default_rng(seed), coded.view
    size = max(4, int(view.users * min(1.0, sample / view.events)))
    users = random.permutation(view.users)[:size]
    train, test = (coded.of_users(half) for half in (users[: size // 2], users[size // 2 :]))
    trees = HistGradientBoostingRegressor(
        categorical_features=np.ones(len(coded.factors), dtype=bool),
        early_stopping=False,
        random_state=seed,
    )
    trees.fit(train.codes, train.response)
    variance = float(test.response.var())
    loss = (trees.predict(test.codes) - test.response) ** 2
    shares = np.zeros((len(coded.factors), 3))
    for place in range(len(coded.factors)):
        growth, codes = np.zeros(len(loss)), test.codes.copy()
        for _ in range(REPEATS):
            codes[:, place] = random.permutation(test.codes[:, place])
            growth += ((trees.predict(codes) - test.response) ** 2 - loss) / REPEATS
        if variance:
            interval = bootstrap_interval(growth / variance, test.user, draws=DRAWS)
            shares[place] = growth.mean() / variance, *interval
    return Importance(
        shares,
        1 - float(loss.mean()) / variance if variance else 0.0,
        _dependence(trees, test, [len(factor.levels) for factor in coded.factors]),
        len(train.response) + len(test.response),
        size,
    )


def _dependence(
    trees: HistGradientBoostingRegressor, batch: Batch, sizes: list[int]
) -> list[FloatArray]:
    events = batch.codes[:: -(-len(batch.codes) // MOST_DEPENDENCE)]
    mean = float(trees.predict(events).mean())
    curves: list[FloatArray] = [np.zeros(size) for size in sizes]
    for place, curve in enumerate(curves):
        codes = events.copy()
        for level in range(len(curve)):
            codes[:, place] = level
            curve[level] = trees.predict(codes).mean() - mean
    return curves
