"""What conversions are laid to: the model's removal effect beside what is read off paths alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llm_influence.analysis import attribution_rules as touch
from llm_influence.analysis.attribution_rules import ChannelPaths, Explained
from llm_influence.analysis.bins import DAY
from llm_influence.analysis.outcomes import find_outcomes, join_outcomes
from llm_influence.analysis.output import Analysis, Table, aligned
from llm_influence.analysis.plots import draw_shares
from llm_influence.analysis.statistics import LEVEL, user_weights
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError, choices
from llm_influence.types import FloatArray

MODEL = "model"
RULES = ("last_touch", "first_touch", "linear", "time_decay")
WITH_OTHERS = ("markov", "shapley_rates")
"""These compare paths that converted with others."""
ESTIMATORS = (MODEL, *RULES, "markov", "shapley", "shapley_rates")
LEAST_USERS = 10

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AttributionOptions:
    """What is asked.

    Attributes:
        channel: Column whose values are channels: ``behavior``, ``item:campaign_type``...
        touches: Behaviours that are touches; default: every event that has a channel.
        outcomes: What came after each history; default: ``outcomes.parquet`` beside the tables.
        conversion: Behaviour that is a conversion; default: a label says it.
        positive_from: Label from which on it is one.
        half_life: Of time decay, in days.
        estimators: Of `ESTIMATORS`.
        resamples: Of users, for intervals.
        seed: Of the resamples.
    """

    channel: str
    touches: tuple[str, ...] | None = None
    outcomes: Path | None = None
    conversion: str | None = None
    positive_from: float = 1.0
    half_life: float = 7.0
    estimators: tuple[str, ...] = ESTIMATORS
    resamples: int = 200
    seed: int = 0


def analyze_attribution(view: InfluenceView, options: AttributionOptions) -> Analysis:
    """Lay the same conversions to channels in several ways.

    ``effect`` is the part of all conversions that an estimator lays to a channel, ``share`` its
    part of what is laid to all channels: effects divided by the sum of their sizes. The model's
    effect on a conversion is the part of its predicted probability that goes when the influence of
    the channel's touches does: ``1 - sigma(full - influence) / sigma(full)``. Intervals draw users
    anew (`analysis.bootstrap`).

    Raises:
        DataError: Too few users, no conversion, no path without one, fewer than two channels, an
            unknown column or estimator, or influences that are no log-odds.
        SchemaError: The outcomes lack a column.
    """
    _check(view, options)
    counts = join_outcomes(
        view,
        find_outcomes(view.sources, options.outcomes),
        conversion=options.conversion,
        positive_from=options.positive_from,
    )
    _check_outcomes(counts, options.estimators)
    paths = ChannelPaths(view, options.channel, options.touches)
    sums = gather(paths, len(paths.channels), options)
    effects = {name: _EFFECTS[name](sums) for name in options.estimators}
    shares = _shares(paths.channels, effects)
    tables = {
        "shares": Table(shares, draw_shares(shares, paths.channels, options.estimators)),
        "channels": Table(_channels(paths.channels, sums)),
    }
    if MODEL in effects and len(effects) > 1:
        tables["distances"] = Table(_distances(effects))
    facts = {
        "method": view.method,
        "users": view.users,
        **counts,
        "touched_conversions": int(sums.touched[0]),
        "options": asdict(options) | {"outcomes": options.outcomes and str(options.outcomes)},
    }
    return Analysis("attribution", facts, tables, _shown(facts, tables, paths.channels))


# --- sums over the stream ------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """Sums over paths, in 1 + R resamples of the users (the first is the data), C channels.

    Attributes:
        conversions: (R,) all of them.
        touched: (R,) those of paths that have a touch.
        rules: By name, (R, C) credit.
        model: (R, C) parts of conversions that go with the channel's influence.
        score: (R, C) summed influence on conversions.
        steps: (R, C + 1, C + 2) steps of the Markov chain.
        sets: (2, R, 2^C) paths and conversions by set of channels met.
        touches: (C,) touches on all paths.
    """

    conversions: FloatArray
    touched: FloatArray
    model: FloatArray
    score: FloatArray
    steps: FloatArray
    sets: FloatArray
    touches: FloatArray
    rules: dict[str, FloatArray] = field(default_factory=dict)


def gather(pieces: Iterable[Explained], count: int, options: AttributionOptions) -> Sums:
    """Add up what the estimators need, in one pass."""
    size = 1 + options.resamples
    sums = Sums(
        np.zeros(size),
        np.zeros(size),
        np.zeros((size, count)),
        np.zeros((size, count)),
        np.zeros((size, count + 1, count + 2)),
        np.zeros((2, size, 1 << count)),
        np.zeros(count),
        {rule: np.zeros((size, count)) for rule in RULES},
    )
    for piece in pieces:
        _add(sums, piece, options)
    return sums


def _add(sums: Sums, piece: Explained, options: AttributionOptions) -> None:
    paths, count = piece.paths, piece.paths.count
    weights = user_weights(piece.users, options.resamples, options.seed)
    hit = weights * paths.converted[:, None]
    sums.conversions += hit.sum(axis=0)
    sums.touched += hit[paths.lengths > 0].sum(axis=0)
    credits = {
        "last_touch": touch.last_touch(paths),
        "first_touch": touch.first_touch(paths),
        "linear": touch.linear(paths),
        "time_decay": touch.time_decay(paths, options.half_life * DAY),
    }
    for rule, credit in credits.items():
        sums.rules[rule] += hit.T @ credit
    sums.model += hit.T @ _lost(piece)
    sums.score += hit.T @ piece.scores
    steps = (touch.transitions(paths).T @ weights).T
    sums.steps += steps.reshape(-1, count + 1, count + 2)
    met = touch.channel_sets(paths)
    for kind, rows in enumerate((weights, hit)):
        np.add.at(sums.sets[kind].T, met, rows)
    sums.touches += np.bincount(paths.channels, minlength=count)


def _lost(piece: Explained) -> FloatArray:
    """(P, C) part of the predicted probability that goes with each channel's influence."""
    full = piece.full[:, None]
    lost: FloatArray = -np.expm1(_log_sigma(full - piece.scores) - _log_sigma(full))
    return lost


def _log_sigma(logits: FloatArray) -> FloatArray:
    found: FloatArray = -np.logaddexp(0, -logits)
    return found


# --- estimates -----------------------------------------------------------------------------


def _of_conversions(laid: FloatArray, sums: Sums) -> FloatArray:
    """(R, C) sums as parts of all conversions; nan in a resample that drew none."""
    whole = sums.conversions[:, None]
    return np.divide(laid, whole, out=np.full_like(laid, np.nan), where=whole > 0)


def _rates(sums: Sums) -> FloatArray:
    """What each channel adds to the conversion rate, as a part of that rate."""
    paths, conversions = sums.sets
    added = touch.shapley_of_rates(conversions, paths)
    return _of_conversions(added * paths.sum(axis=1, keepdims=True), sums)


_EFFECTS: dict[str, Callable[[Sums], FloatArray]] = {
    MODEL: lambda sums: _of_conversions(sums.model, sums),
    "last_touch": lambda sums: _of_conversions(sums.rules["last_touch"], sums),
    "first_touch": lambda sums: _of_conversions(sums.rules["first_touch"], sums),
    "linear": lambda sums: _of_conversions(sums.rules["linear"], sums),
    "time_decay": lambda sums: _of_conversions(sums.rules["time_decay"], sums),
    "markov": lambda sums: touch.removal_effects(sums.steps),
    "shapley": lambda sums: _of_conversions(touch.shapley_of_counts(sums.sets[1]), sums),
    "shapley_rates": _rates,
}


def shares_of(effects: FloatArray) -> FloatArray:
    """(..., C) effects divided by the sum of their sizes: signs stay."""
    whole = np.abs(effects).sum(axis=-1, keepdims=True)
    return np.divide(effects, whole, out=np.full_like(effects, np.nan), where=whole > 0)


def _shares(channels: tuple[str, ...], effects: Mapping[str, FloatArray]) -> list[Record]:
    """One record an estimator and channel."""
    records = []
    for name, found in effects.items():
        share = shares_of(found)
        bounds = {"": _interval(share), "effect_": _interval(found)}
        for place, channel in enumerate(channels):
            record: Record = {"estimator": name, "channel": channel}
            for prefix, values in (("", share), ("effect_", found)):
                low, high = bounds[prefix]
                record[prefix.rstrip("_") or "share"] = float(values[0, place])
                record[f"{prefix}low"], record[f"{prefix}high"] = low[place], high[place]
            records.append(record)
    return records


def _interval(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Percentiles over the resamples that have a value; nan where there are none."""
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    known = values[1:][~np.isnan(values[1:]).any(axis=1)]
    if not len(known):
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    low, high = np.quantile(known, tails, axis=0)
    return low, high


def _channels(channels: tuple[str, ...], sums: Sums) -> list[Record]:
    """What was seen of each channel."""
    paths, conversions = sums.sets[:, 0]
    sets = np.arange(len(paths))
    records = []
    for place, channel in enumerate(channels):
        met = (sets >> place) & 1 == 1
        counts = [paths[met].sum(), conversions[met].sum(), paths[~met].sum()]
        records.append(
            {
                "channel": channel,
                "touches": int(sums.touches[place]),
                "paths": int(counts[0]),
                "conversions": int(counts[1]),
                "rate_with": float(counts[1] / counts[0]) if counts[0] else np.nan,
                "rate_without": float(conversions[~met].sum() / counts[2]) if counts[2] else np.nan,
                "mean_influence": float(sums.score[0, place] / sums.conversions[0]),
            }
        )
    return records


def _distances(effects: Mapping[str, FloatArray]) -> list[Record]:
    """How far each estimator's shares are from the model's: half the sum of differences."""
    ours = shares_of(effects[MODEL])
    records = []
    for name, found in effects.items():
        if name == MODEL:
            continue
        distance = np.abs(shares_of(found) - ours).sum(axis=1, keepdims=True) / 2
        low, high = _interval(distance)
        rank = stats.spearmanr(found[0], effects[MODEL][0]).statistic
        records.append(
            {
                "estimator": name,
                "distance": float(distance[0, 0]),
                "low": low[0],
                "high": high[0],
                "rank_correlation": float(rank),
            }
        )
    return records


# --- checks and the short table ------------------------------------------------------------


def _check(view: InfluenceView, options: AttributionOptions) -> None:
    view.require_users(LEAST_USERS, "intervals draw users")
    for name in options.estimators:
        if name not in ESTIMATORS:
            raise DataError(
                f"unknown estimator {name!r}",
                where="--estimator",
                expected=choices(ESTIMATORS, name),
                fix="correct the name",
            )
    if MODEL not in options.estimators:
        return
    odd = view.table(
        "SELECT count(*) AS n FROM influence_rows WHERE prediction IS NULL OR units <> 'target'"
    )["n"][0].as_py()
    if odd:
        raise DataError(
            f"{odd:,} rows of method {view.method!r} are no influence on log-odds",
            where="influence tables",
            expected="scores in log-odds of an item, a behaviour or feedback",
            fix="explain with leave_one_out or shapley, or name --estimator without 'model'",
        )


def _check_outcomes(counts: Mapping[str, int], estimators: tuple[str, ...]) -> None:
    if not counts["conversions"]:
        raise DataError(
            f"none of {counts['explanations']:,} explained histories ended in a conversion",
            where="outcomes",
            expected="at least one",
            fix="explain histories before conversions too, or correct --conversion or "
            "--positive-from",
        )
    needing = [name for name in estimators if name in WITH_OTHERS]
    if needing and counts["conversions"] == counts["explanations"]:
        kept = [name for name in estimators if name not in WITH_OTHERS]
        raise DataError(
            f"all {counts['explanations']:,} explained histories ended in a conversion",
            where="outcomes",
            expected=f"some that did not: {', '.join(needing)} compare the two",
            fix="explain those too, or name others: "
            + " ".join(f"--estimator {name}" for name in kept),
        )


def _shown(
    facts: Mapping[str, Any], tables: Mapping[str, Table], channels: tuple[str, ...]
) -> list[str]:
    shares = tables["shares"].records
    names = list(dict.fromkeys(record["estimator"] for record in shares))
    found = {(record["estimator"], record["channel"]): record["share"] for record in shares}
    rows = [{"channel": c, **{name: found[name, c] for name in names}} for c in channels]
    lines = [
        f"{facts['conversions']:,} conversions of {facts['explanations']:,} explained histories, "
        f"{facts['touched_conversions']:,} with a touch; {facts['method']}; shares by channel:",
        *aligned(rows, ["channel", *names]),
    ]
    if MODEL in names:
        lines += ["", "model: influence on the model, no proof of what caused the conversion"]
    if facts["without_outcome"]:
        lines.append(f"left out: {facts['without_outcome']:,} explanations without an outcome")
    return lines
