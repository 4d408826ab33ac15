"""Paths of touches by channel, and the credit they give: rules, Markov chain, Shapley values.

A path holds what a user met before an outcome: touches, each of a channel, and whether the user
converted. No estimator is a causal effect: docs/how-to/channels.md
says when each misleads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from llm_influence.analysis.columns import DAY, select, sql_text
from llm_influence.analysis.levels import OTHER
from llm_influence.analysis.statistics import divide, user_weights
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import ChannelOptions, Estimator
from llm_influence.errors import DataError, unknown
from llm_influence.numerics import every_coalition, exact_shapley
from llm_influence.types import BoolArray, FloatArray, IntArray

RULES = ("last_touch", "first_touch", "linear", "time_decay")
COMPARING = ("markov", "shapley_rates")
"""Estimators that compare paths with and without a conversion."""


MOST_CHANNELS = 12
"""With more channels, the rare ones become one: the number of sets doubles with each channel."""
_NO_TOUCH = 255


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """P paths of T touches in all, path after path, the oldest touch first."""

    channels: IntArray  # (T,) channel of each touch, 0 to C - 1
    # (T,) seconds from each touch to a time that is the same for all touches of a path
    ages: FloatArray
    starts: IntArray  # (P + 1,) place of each path's first touch, and T. A path may have no touch.
    converted: BoolArray
    count: int  # C

    def __len__(self) -> int:
        """Number of paths P."""
        return len(self.converted)

    @property
    def lengths(self) -> IntArray:
        """(P,) number of touches of each path."""
        return np.diff(self.starts)

    @property
    def owners(self) -> IntArray:
        """(T,) path of each touch."""
        return np.repeat(np.arange(len(self)), self.lengths)


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedPaths:
    """P paths with their explanations."""

    paths: Paths
    users: IntArray  # (P,) user codes, never decreasing
    scores: FloatArray  # (P, C) summed influence of each channel's touches
    full: FloatArray  # (P,) value of the explained target with all events


class ChannelPaths:
    """Explained histories with an outcome, as paths; iterate to get `ExplainedPaths` in batches.

    Events are coded and sorted once, in the view's database, so memory does not grow with them.
    The view needs the table ``outcome_of`` (`channels.join_outcomes`). A touch has a value in the
    column ``channel`` and, if ``touches`` are given, one of these behaviours.
    ``channels`` are names in the order of their codes, the most frequent first.
    """

    def __init__(
        self, view: InfluenceView, channel: str, touches: tuple[str, ...] | None = None
    ) -> None:
        self._view = view
        view.select(channel)
        names = ("explanation", "position", "age_seconds", "score", "full_value", "behavior")
        columns = {name: view.columns[name] for name in names} | {"value": view.columns[channel]}
        events = f"({select(columns, parts=view.parts)})"
        is_touch = "TRUE" if touches is None else f"behavior IN ({_listed(view, touches)})"
        named, rare = self._names(f"{events} WHERE {is_touch} AND value IS NOT NULL", channel)
        self.channels = (*named, OTHER) if rare else named
        cases = " ".join(
            f"WHEN value::VARCHAR = {sql_text(name)} THEN {code}" for code, name in enumerate(named)
        )
        none = f"WHEN value IS NULL OR NOT ({is_touch}) THEN {_NO_TOUCH}"
        view.execute("DROP TABLE IF EXISTS touches")
        view.execute(
            'CREATE TABLE touches AS SELECT o.user_code AS "user", explanation, o.converted, '
            f"(CASE {none} {cases} ELSE {len(named)} END)::UTINYINT AS channel, "
            f"age_seconds, score, full_value "
            f"FROM {events} JOIN outcome_of AS o USING (explanation) "
            'ORDER BY "user", explanation, position'
        )

    def __iter__(self) -> Iterator[ExplainedPaths]:
        """All paths, in batches; those of a user follow each other."""
        rows = self._view.grouped_batches("SELECT * FROM touches", "explanation")
        yield from map(self._explained, rows)

    def _names(self, touched: str, channel: str) -> tuple[tuple[str, ...], bool]:
        """Channels that keep their names, and whether there are others."""
        names = self._view.table(
            "SELECT value::VARCHAR AS name, count(*) AS events "
            f"FROM {touched} GROUP BY 1 ORDER BY events DESC, name"
        )["name"].to_pylist()
        if len(names) < 2:
            raise DataError(
                f"one channel, {names[0]!r}" if names else "no channel",
                where=f"column {channel!r} of the touches",
                expected="at least two channels",
                fix="name another column with --channel, or more behaviours with --touch",
            )
        rare = len(names) > MOST_CHANNELS
        return tuple(names[: MOST_CHANNELS - 1] if rare else names), rare

    def _explained(self, rows: pa.Table) -> ExplainedPaths:
        explanation = rows["explanation"].to_numpy()
        starts = np.flatnonzero(np.diff(explanation, prepend=explanation[0] - 1))
        code, score = rows["channel"].to_numpy(), rows["score"].to_numpy()
        touch = code != _NO_TOUCH
        owner = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))[touch]
        channels = code[touch].astype(np.int64)
        scores = np.zeros((len(starts), len(self.channels)))
        np.add.at(scores, (owner, channels), score[touch])
        paths = Paths(
            channels=channels,
            ages=rows["age_seconds"].to_numpy()[touch].astype(np.float64),
            starts=np.searchsorted(owner, np.arange(len(starts) + 1)),
            converted=rows["converted"].to_numpy(zero_copy_only=False)[starts],
            count=len(self.channels),
        )
        full = rows["full_value"].to_numpy()[starts]
        return ExplainedPaths(paths, rows["user"].to_numpy()[starts], scores, full)


def _listed(view: InfluenceView, touches: tuple[str, ...]) -> str:
    query = f"SELECT DISTINCT behavior FROM ({view.select('behavior')}) ORDER BY behavior"
    known = view.table(query)["behavior"].to_pylist()
    for name in touches:
        if name not in known:
            fix = "name behaviours of the explained events"
            raise unknown(DataError, "behaviour", name, known, where="--touch", fix=fix)
    return ", ".join(sql_text(name) for name in touches)


# --- attribution rules: shares of one conversion among its touches ---------------------------


def last_touch(paths: Paths) -> FloatArray:
    """(P, C) the whole credit of each path to its last touch, as in most reports."""
    return _credit(paths, _at(paths, paths.starts[1:] - 1))


def first_touch(paths: Paths) -> FloatArray:
    """(P, C) the whole credit of each path to its first touch."""
    return _credit(paths, _at(paths, paths.starts[:-1]))


def linear(paths: Paths) -> FloatArray:
    """(P, C) the credit of each path in equal parts to its touches."""
    return _credit(paths, np.ones(len(paths.channels)))


def time_decay(paths: Paths, half_life: float) -> FloatArray:
    """(P, C) a touch gets half the credit of one that is ``half_life`` seconds later."""
    latest = np.full(len(paths), np.inf)
    np.minimum.at(latest, paths.owners, paths.ages)
    return _credit(paths, 0.5 ** ((paths.ages - latest[paths.owners]) / half_life))


def _at(paths: Paths, places: IntArray) -> FloatArray:
    """(T,) 1 at one place of every path that has a touch, else 0."""
    weights = np.zeros(len(paths.channels))
    weights[places[paths.lengths > 0]] = 1.0
    return weights


def _credit(paths: Paths, weights: FloatArray) -> FloatArray:
    """(P, C) shares of (T,) weights by channel; 0 for paths without a touch."""
    totals = np.zeros((len(paths), paths.count))
    np.add.at(totals, (paths.owners, paths.channels), weights)
    return divide(totals, totals.sum(axis=1, keepdims=True), none=0.0)


# --- Markov chain ----------------------------------------------------------------------------


def transitions(paths: Paths) -> sparse.csr_array:
    """(P, (C + 1)(C + 2)) counts of each path's steps between states.

    Steps lead from the C channels and the start (C) to the C channels, conversion (C) and null
    (C + 1).
    """
    count = paths.count
    owners, channels = paths.owners, paths.channels.astype(np.int64)
    first = np.append(True, owners[1:] != owners[:-1])[: len(owners)]
    before = np.where(first, count, np.append(count, channels[:-1])[: len(channels)])
    last = np.full(len(paths), count, dtype=np.int64)
    some = paths.lengths > 0
    last[some] = channels[paths.starts[1:][some] - 1]
    end = np.where(paths.converted, count, count + 1)
    rows = np.concatenate([owners, np.arange(len(paths))])
    steps = np.concatenate([before * (count + 2) + channels, last * (count + 2) + end])
    shape = (len(paths), (count + 1) * (count + 2))
    return sparse.coo_array((np.ones(len(rows)), (rows, steps)), shape=shape).tocsr()


def removal_effects(counts: FloatArray) -> FloatArray:
    """(..., C) share of conversions that a first-order Markov chain loses without each channel.

    The chain goes from the start through channels to conversion or null, with the observed shares
    of steps. Without a channel, steps to it lead to null (Anderl, Becker, von Wangenheim and
    Schumann 2016, doi:10.1016/j.ijresmar.2016.03.001). Every path through the channel counts as
    lost, so frequent channels have large effects. ``counts`` are (..., C + 1, C + 2) steps, see
    `transitions`; effects are nan where no step leads to conversion.
    """
    chances = divide(counts, counts.sum(axis=-1, keepdims=True), none=0.0)
    count = counts.shape[-1] - 2
    without = np.empty((*counts.shape[:-2], count))
    for channel in range(count):
        removed = chances.copy()
        removed[..., channel] = 0.0
        without[..., channel] = _conversion(removed)
    return 1 - divide(without, _conversion(chances)[..., None])


def _conversion(chances: FloatArray) -> FloatArray:
    """(...) probability to convert from the start, with (..., C + 1, C + 2) step probabilities."""
    count = chances.shape[-1] - 2
    inner, out = chances[..., :count, :count], chances[..., :count, count]
    reached = np.linalg.solve(np.eye(count) - inner, out[..., None])[..., 0]
    start = chances[..., count, :]
    converted: FloatArray = (start[..., :count] * reached).sum(axis=-1) + start[..., count]
    return converted


# --- Shapley values --------------------------------------------------------------------------


def channel_sets(paths: Paths) -> IntArray:
    """(P,) the set of channels on each path, channel c as bit c."""
    sets = np.zeros(len(paths), dtype=np.int64)
    np.bitwise_or.at(sets, paths.owners, 1 << paths.channels.astype(np.int64))
    return sets


def shapley_of_counts(conversions: FloatArray) -> FloatArray:
    """(..., C) Shapley values of (..., 2^C) conversions by set of channels, see `channel_sets`.

    The value of a coalition is the number of conversions of paths with its channels alone (Zhao,
    Mahboobi and Bagheri 2018, arXiv:1804.05327), so each set's are shared evenly among its
    channels. Paths without a conversion do not matter.
    """
    members = every_coalition(conversions.shape[-1].bit_length() - 1).astype(np.int64)
    return conversions @ (members / np.maximum(members.sum(axis=1, keepdims=True), 1))


def shapley_of_rates(conversions: FloatArray, paths: FloatArray) -> FloatArray:
    """(..., C) Shapley values of the conversion rate, from (..., 2^C) counts by set of channels.

    The value of a coalition is the conversion rate of the paths with its channels alone, and 0
    without such a path. Dalessandro, Perlich, Stitelman and Provost (2012,
    doi:10.1145/2351356.2351363) take rates of exact sets; with subsets pooled, few are empty.
    Values add up to the overall rate minus the rate of paths without a touch. A channel gets a
    value even if its users would have converted without it.
    """
    return exact_shapley(divide(_subset_sums(conversions), _subset_sums(paths), none=0.0))


def _subset_sums(values: FloatArray) -> FloatArray:
    """(..., 2^C) sums over all subsets of each set, bit after bit."""
    sums = values.astype(np.float64)
    for bit in range(values.shape[-1].bit_length() - 1):
        halves = sums.reshape(*values.shape[:-1], -1, 2, 1 << bit)
        halves[..., 1, :] += halves[..., 0, :]
    return sums


# --- sums over the stream --------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """Sums over paths in R resamples of the users; the first is the data. There are C channels."""

    conversions: FloatArray  # (R,) all conversions
    touched: FloatArray  # (R,) conversions of paths with a touch
    model: FloatArray  # (R, C) parts of conversions that are lost without the channel's influence
    score: FloatArray  # (R, C) summed influence on conversions
    steps: FloatArray  # (R, C + 1, C + 2) steps of the Markov chain
    sets: FloatArray  # (2, R, 2^C) paths and conversions by set of channels
    touches: FloatArray  # (C,) touches on all paths
    rules: dict[str, FloatArray]  # (R, C) credit by attribution rule


def gather(batches: Iterable[ExplainedPaths], count: int, options: ChannelOptions) -> Sums:
    """Sum what the estimators need over ``count`` channels.

    The data and bootstrap resamples of users are summed in one pass; paths of a user may be in
    several batches.
    """
    size = 1 + options.resamples
    conversions, touched = np.zeros((2, size))
    model, score, *rules = np.zeros((2 + len(RULES), size, count))
    steps, sets = np.zeros((size, count + 1, count + 2)), np.zeros((2, size, 1 << count))
    credits: dict[str, FloatArray] = dict(zip(RULES, rules, strict=True))
    sums = Sums(conversions, touched, model, score, steps, sets, np.zeros(count), credits)
    for batch in batches:
        paths = batch.paths
        weights = user_weights(batch.users, options.resamples, options.seed)
        hits = weights * paths.converted[:, None]
        sums.conversions += hits.sum(axis=0)
        sums.touched += hits[paths.lengths > 0].sum(axis=0)
        credit = {
            "last_touch": last_touch(paths),
            "first_touch": first_touch(paths),
            "linear": linear(paths),
            "time_decay": time_decay(paths, options.half_life * DAY),
        }
        for rule, values in credit.items():
            sums.rules[rule] += hits.T @ values
        full = batch.full[:, None]
        log_ratio = np.logaddexp(0, -full) - np.logaddexp(0, batch.scores - full)
        sums.model += hits.T @ -np.expm1(log_ratio)
        sums.score += hits.T @ batch.scores
        sums.steps += (transitions(paths).T @ weights).T.reshape(sums.steps.shape)
        for kind, rows in enumerate((weights, hits)):
            np.add.at(sums.sets[kind].T, channel_sets(paths), rows)
        sums.touches += np.bincount(paths.channels, minlength=count)
    return sums


# --- estimates -------------------------------------------------------------------------------


def effect_of(estimator: Estimator, sums: Sums) -> FloatArray:
    """(R, C) parts of all conversions that an estimator credits to channels; nan without any."""
    if estimator == "markov":
        return removal_effects(sums.steps)
    if estimator == "model":
        credit = sums.model
    elif estimator == "shapley":
        credit = shapley_of_counts(sums.sets[1])
    elif estimator == "shapley_rates":  # what each channel adds to the rate, as conversions
        paths, conversions = sums.sets
        credit = shapley_of_rates(conversions, paths) * paths.sum(axis=1, keepdims=True)
    else:
        credit = sums.rules[estimator]
    return divide(credit, sums.conversions[:, None])


def shares_of(effects: FloatArray) -> FloatArray:
    """(..., C) effects divided by the sum of their sizes; signs stay."""
    return divide(effects, np.abs(effects).sum(axis=-1, keepdims=True))
