"""Pairs of factors whose effect together differs from the sum of their effects.

For each pair the dummies of its cells are added to the regression of all factors. By the theorem of
Frisch, Waugh and Lovell their coefficients follow from the residuals of that regression:

    g = (Z~'Z~)^-1 Z'e,   Z~ = Z - X (X'X)^-1 X'Z,

so that one more pass serves all pairs. The test is the score test, its variance over users.

Which factors of events go with their influence: ranking, effects, pairs, weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from llm_influence.analysis.decay import behavior_weights
from llm_influence.analysis.event_cells import Batch, CodedEvents, Response
from llm_influence.analysis.levels import Factor, factor_of
from llm_influence.analysis.output import Analysis, Table, aligned
from llm_influence.analysis.permutation import Importance, permutation_importance
from llm_influence.analysis.plots import draw_effects, draw_interactions, draw_ranking, draw_weights
from llm_influence.analysis.regression import (
    SINGULAR,
    Fit,
    UserSums,
    columns_of,
    fit,
    gather,
    holm,
    small_sample,
    spread_of,
    with_residuals,
    zero_test,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from llm_influence.types import FloatArray, IntArray

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Interaction:
    """One pair.

    Attributes:
        pair: Numbers of the two factors.
        spread: Standard deviation over events of what the pair adds to both effects, freed of
            chance, with the ends of its interval.
        p_value: Of nothing being added; nan where no cell is left to test, or where there are not
            more users than cells.
        counts: (A, B) events in each cell.
        effects: (A, B) what each cell adds; nan where it has no event.
    """

    pair: Pair
    spread: tuple[float, float, float]
    p_value: float
    counts: FloatArray
    effects: FloatArray


class _Sums:
    """What a pair needs of the data, gathered batch by batch."""

    def __init__(self, pair: Pair, fit: Fit) -> None:
        self._pair, self._fit, sizes = pair, fit, fit.moments.sizes
        self.shape = (sizes[pair[0]], sizes[pair[1]])
        self.cells = self.shape[0] * self.shape[1]
        self.moved = np.zeros(self.cells)  # Z'e
        self.crossed = np.zeros((self.cells, sum(sizes)))  # Z' times every level
        self.meat = np.zeros((self.cells + len(fit.coefficients),) * 2)
        self._users = UserSums((self.cells, *sizes))

    def add(self, batch: Batch, columns: Sequence[IntArray], residuals: FloatArray) -> None:
        first, second = self._pair
        cell = columns[first] * self.shape[1] + columns[second]
        self.moved += np.bincount(cell, residuals, minlength=self.cells)
        moments = self._fit.moments
        for codes, size, block in zip(columns, moments.sizes, moments.blocks, strict=True):
            both = np.bincount(cell * size + codes, minlength=self.cells * size)
            self.crossed[:, block] += both.reshape(self.cells, size)
        self._add_meat(self._users.add(batch.user, [cell, *columns], residuals))

    def finish(self) -> Interaction:
        self._add_meat(self._users.last())
        fit, cells = self._fit, self.cells
        crossed = columns_of(self.crossed, fit.moments.sizes, fit.kept)  # Z'X
        along = crossed @ fit.inverse
        counts = crossed[:, 0]
        own = np.diag(counts) - along @ crossed.T  # Z~'Z~
        change = np.concatenate([np.eye(cells), -along], axis=1)
        covariance = small_sample(fit.users) * change @ self.meat @ change.T  # of Z~'e
        sizes, axes = np.linalg.eigh(own)
        kept = sizes > SINGULAR * max(float(counts.max()), 1.0)
        axes, sizes = axes[:, kept], sizes[kept]
        inverse = (axes / sizes) @ axes.T
        gamma, errors = inverse @ self.moved, inverse @ covariance @ inverse
        return Interaction(
            self._pair,
            spread_of(gamma, errors, own / fit.moments.events),
            zero_test(axes.T @ self.moved, axes.T @ covariance @ axes, fit.users),
            counts.reshape(self.shape),
            _net(gamma.reshape(self.shape), counts.reshape(self.shape)),
        )

    def _add_meat(self, sums: FloatArray) -> None:
        levels = columns_of(sums[:, self.cells :], self._fit.moments.sizes, self._fit.kept)
        scores = np.concatenate([sums[:, : self.cells], levels], axis=1)
        self.meat += scores.T @ scores


def interactions(fit: Fit, batches: Iterable[Batch], pairs: Sequence[Pair]) -> list[Interaction]:
    """Test pairs of factors in one pass over the batches that ``fit`` was fitted to."""
    sums = [_Sums(pair, fit) for pair in pairs]
    sizes = fit.moments.sizes
    for batch, residuals in with_residuals(sizes, fit.kept, fit.coefficients, batches):
        columns = batch.columns()
        for each in sums:
            each.add(batch, columns, residuals)
    return [each.finish() for each in sums]


def _net(effects: FloatArray, counts: FloatArray) -> FloatArray:
    """(A, B) effects without what a row or a column has in common, weighted by events."""
    rows, columns = np.indices(effects.shape).reshape(2, -1)
    base = np.concatenate([np.eye(effects.shape[0])[rows], np.eye(effects.shape[1])[columns]], 1)
    root = np.sqrt(counts.ravel())
    common = np.linalg.lstsq(base * root[:, None], effects.ravel() * root)[0]
    net = (effects.ravel() - base @ common).reshape(effects.shape)
    return np.where(counts > 0, net, np.nan)


USUAL = ("behavior", "gap", "recency", "session", "value")
"""Factors that every table may have; categories of items and features of users are added."""
LEAST_USERS = 10
MOST_PAIRED = 6
"""The factors that spread most are paired with each other."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FactorOptions:
    """What is asked.

    Attributes:
        factors: Columns of the view; default: `USUAL`, and every column of the item and user
            tables that has few distinct values.
        response: ``score`` keeps the sign, ``size`` asks how strong whatever the direction.
        match: Column that tells which events speak for the target, for the weights of behaviours
            (`llm_influence.analysis.weights`); default: none.
        alpha: Chance of any false alarm among the factors, and among the pairs.
        sample: Events for permutation importance, about.
        seed: Of the sample and the shuffles.
    """

    factors: tuple[str, ...] | None = None
    response: Response = "score"
    match: str | None = None
    alpha: float = 0.05
    sample: int = 100_000
    seed: int = 0


def analyze_factors(view: InfluenceView, options: FactorOptions | None = None) -> Analysis:
    """Find which factors matter.

    Every event is one observation. Effects come from a regression of all factors at once over all
    events (`analysis.regression`), importance without a form assumed from shuffled columns on a
    sample (`analysis.permutation`), pairs from `analysis.interactions`.

    Raises:
        DataError: Too few users, an unknown factor, one without two levels, or nothing to explain:
            all scores are the same.
    """
    options = options or FactorOptions()
    view.require_users(LEAST_USERS, "standard errors are over users")
    factors, left_out = _factors(view, options.factors)
    coded = CodedEvents(view, factors, options.response)
    moments = gather(coded.batches(), [len(factor.levels) for factor in factors])
    if moments.variance <= 1e-12 * moments.squares / moments.events:
        raise DataError(
            f"every {options.response} is {moments.total / moments.events:g}",
            where="influence tables",
            expected="scores that differ",
            fix="explain with a method that tells events apart",
        )
    found = fit(moments, coded.batches(), view.users)
    trees = permutation_importance(coded, most=options.sample, seed=options.seed)
    ranking = _ranking(factors, found, trees, options.alpha)
    paired = interactions(found, coded.batches(), _pairs(factors, ranking))
    tables = {
        "ranking": Table(ranking, draw_ranking(ranking)),
        "effects": _effects(factors, found, trees),
        **_interaction_tables(factors, paired, options.alpha),
        **_weights(view, options.match),
    }
    facts = {
        "method": view.method,
        "units": view.units,
        "events": view.events,
        "explanations": view.explanations,
        "users": view.users,
        "options": asdict(options),
        "left_out": left_out,
        "regression_r_squared": found.r_squared,
        "trees_r_squared": trees.r_squared,
        "sample_events": trees.events,
        "sample_users": trees.users,
    }
    return Analysis("factors", facts, tables, _shown(facts, tables))


def _factors(
    view: InfluenceView, asked: tuple[str, ...] | None
) -> tuple[list[Factor], dict[str, str]]:
    """The factors, and why others are none."""
    side = [name for name in view.columns if name.startswith(("item:", "match:", "user:"))]
    numbers = {name.partition(":")[2] for name in side if view.columns[name].number}
    usual = [n for n in side if not (n.startswith("match:") and n.partition(":")[2] in numbers)]
    names = list(dict.fromkeys(asked)) if asked is not None else [*USUAL, *usual]
    cut = {name: factor_of(view, name, asked=asked is not None) for name in names}
    factors = [found for found in cut.values() if isinstance(found, Factor)]
    if not factors:
        raise DataError(
            "no factor with two levels",
            where="influence tables",
            expected="at least one column in which events differ",
            fix="name columns with --factors",
        )
    return factors, {name: why for name, why in cut.items() if isinstance(why, str)}


def _ranking(factors: list[Factor], found: Fit, trees: Importance, alpha: float) -> list[Record]:
    """One record a factor, the widest first."""
    p_values = [found.wald(place) for place in range(len(factors))]
    records = []
    for place, (factor, corrected) in enumerate(zip(factors, holm(p_values), strict=True)):
        spread, low, high = found.spread(place)
        share, share_low, share_high = trees.shares[place]
        records.append(
            {
                "factor": factor.name,
                "levels": int((found.moments.shares[found.moments.blocks[place]] > 0).sum()),
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


def _effects(factors: list[Factor], found: Fit, trees: Importance) -> Table:
    """One record a level that occurs, in order."""
    moments, (values, errors) = found.moments, found.effects()
    records = []
    for place, (factor, block) in enumerate(zip(factors, moments.blocks, strict=True)):
        for code, level in enumerate(factor.levels):
            at = block.start + code
            if not moments.counts[at, at]:
                continue
            half = found.critical * errors[at]
            records.append(
                {
                    "factor": factor.name,
                    "level": level,
                    "events": int(moments.counts[at, at]),
                    "mean": float(moments.sums[at] / moments.counts[at, at]),
                    "effect": float(values[at]),
                    "standard_error": float(errors[at]),
                    "low": float(values[at] - half),
                    "high": float(values[at] + half),
                    "partial_dependence": float(trees.dependence[place][code]),
                }
            )
    return Table(records, draw_effects(records))


def _pairs(factors: list[Factor], ranking: list[Record]) -> list[tuple[int, int]]:
    place = {factor.name: number for number, factor in enumerate(factors)}
    widest = sorted(place[record["factor"]] for record in ranking[:MOST_PAIRED])
    return list(combinations(widest, 2))


def _interaction_tables(
    factors: list[Factor], paired: list[Interaction], alpha: float
) -> dict[str, Table]:
    """The pairs, the widest first, and the cells of those that matter."""
    corrected = holm([each.p_value for each in paired])
    rows: list[Record] = []
    cells: list[Record] = []
    for each, p in sorted(zip(paired, corrected, strict=True), key=lambda two: -two[0].spread[0]):
        first, second = (factors[place] for place in each.pair)
        spread, low, high = each.spread
        names = {"first": first.name, "second": second.name}
        tested = {"p_value": each.p_value, "p_holm": float(p), "matters": bool(p <= alpha)}
        rows.append({**names, "spread": spread, "low": low, "high": high, **tested})
        if p <= alpha:
            cells += list(_cells(each, first, second))
    if not rows:
        return {}
    tables = {"interactions": Table(rows, draw_interactions(rows))}
    return tables | ({"interaction_cells": Table(cells)} if cells else {})


def _cells(found: Interaction, first: Factor, second: Factor) -> Iterator[Record]:
    for row, column in zip(*np.nonzero(found.counts), strict=True):
        yield {
            "first": first.name,
            "first_level": first.levels[row],
            "second": second.name,
            "second_level": second.levels[column],
            "events": int(found.counts[row, column]),
            "effect": float(found.effects[row, column]),
        }


def _weights(view: InfluenceView, match: str | None) -> dict[str, Table]:
    """Weights of behaviours, where there are several."""
    found = behavior_weights(view, match)
    if len(found.behaviors) < 2:
        return {}
    half = found.critical * found.errors
    columns = (found.behaviors, found.values, found.errors, half, found.events)
    records: list[Record] = [
        {
            "behavior": name,
            "weight": float(value),
            "standard_error": float(error),
            "low": float(value - width),
            "high": float(value + width),
            "events": int(events),
        }
        for name, value, error, width, events in zip(*columns, strict=True)
    ]
    records.sort(key=lambda record: -record["weight"])
    return {"weights": Table(records, draw_weights(records))}


def _shown(facts: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    lines = [
        f"{facts['events']:,} events of {facts['users']:,} users, {facts['method']}; all factors "
        f"explain {facts['regression_r_squared']:.1%} of the variance, trees "
        f"{facts['trees_r_squared']:.1%} on unseen users"
    ]
    columns = ["factor", "spread", "spread_low", "spread_high", "p_holm", "matters"]
    lines += aligned(tables["ranking"].records, [*columns, "permutation_share"])
    every = tables["interactions"].records if "interactions" in tables else []
    pairs = [row for row in every if row["matters"]][:5]
    if pairs:
        lines += ["", *aligned(pairs, ["first", "second", "spread", "low", "high", "p_holm"])]
    if "weights" in tables:
        lines += ["", *aligned(tables["weights"].records, ["behavior", "weight", "low", "high"])]
    return lines + [f"left out: {name} ({why})" for name, why in facts["left_out"].items()]
