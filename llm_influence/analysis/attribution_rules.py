"""To whom conversions are laid, from what was seen alone: attribution rules, Markov, Shapley.

A path is what a user met before an outcome, converted or not: touches, each of a channel. All
functions here are of arrays and know neither tables nor models. None of them is a causal
effect: docs/analysis_attribution.md says when each misleads.

Explained histories as paths of touches by channel, streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse
from scipy.special import comb

from llm_influence.analysis.bins import quoted
from llm_influence.analysis.columns import select
from llm_influence.analysis.levels import OTHER
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError, choices
from llm_influence.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """P paths of T touches in all, path after path, the oldest touch first.

    Attributes:
        channels: (T,) code of each touch's channel, 0 to C - 1.
        ages: (T,) seconds from the touch to one moment, the same for all touches of a path.
        starts: (P + 1,) where each path begins, and T. A path may have no touch.
        converted: (P,) bool.
        count: C.
    """

    channels: IntArray
    ages: FloatArray
    starts: IntArray
    converted: BoolArray
    count: int

    def __len__(self) -> int:
        """Number of paths P."""
        return len(self.converted)

    @property
    def lengths(self) -> IntArray:
        """(P,) touches of each path."""
        return np.diff(self.starts)

    @property
    def owners(self) -> IntArray:
        """(T,) number of each touch's path."""
        return np.repeat(np.arange(len(self)), self.lengths)


# --- rules: one conversion shared among its touches ------------------------------------------


def last_touch(paths: Paths) -> FloatArray:
    """(P, C) all of each path's credit to its last touch: what most reports show."""
    return _spread(paths, _at(paths, paths.starts[1:] - 1))


def first_touch(paths: Paths) -> FloatArray:
    """(P, C) all of each path's credit to its first touch."""
    return _spread(paths, _at(paths, paths.starts[:-1]))


def linear(paths: Paths) -> FloatArray:
    """(P, C) each path's credit shared evenly among its touches."""
    return _spread(paths, np.ones(len(paths.channels)))


def time_decay(paths: Paths, half_life: float) -> FloatArray:
    """(P, C) a touch counts half as much as one ``half_life`` seconds later.

    Only differences of ages count, so it does not matter to which moment ages are measured.
    """
    ages = paths.ages.astype(np.float64)
    latest = np.full(len(paths), np.inf)
    np.minimum.at(latest, paths.owners, ages)
    return _spread(paths, 0.5 ** ((ages - latest[paths.owners]) / half_life))


def _at(paths: Paths, places: IntArray) -> FloatArray:
    """(T,) 1 at one place of every path that has a touch, else 0."""
    weights = np.zeros(len(paths.channels))
    weights[places[paths.lengths > 0]] = 1.0
    return weights


def _spread(paths: Paths, weights: FloatArray) -> FloatArray:
    """(P, C) shares of (T,) weights by channel; rows of paths without a touch are zero."""
    totals = np.zeros((len(paths), paths.count))
    np.add.at(totals, (paths.owners, paths.channels), weights)
    whole = totals.sum(axis=1, keepdims=True)
    return np.divide(totals, whole, out=totals, where=whole > 0)


# --- Markov chain ------------------------------------------------------------------------------


def transitions(paths: Paths) -> sparse.csr_array:
    """(P, (C + 1)(C + 2)) steps of each path between states.

    From the C channels and the start (C) to the C channels, conversion (C) and null (C + 1).
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

    The chain walks from the start through channels to conversion or null, by the shares of the
    counted steps; without a channel, what would have gone there goes to null (Anderl, Becker,
    von Wangenheim and Schumann 2016, doi:10.1016/j.ijresmar.2016.03.001). It takes every path that
    met the channel for lost, so an effect is the larger the more paths meet it.

    Args:
        counts: (..., C + 1, C + 2) steps between states, see `transitions`. Where none leads to a
            conversion the effects are nan.
    """
    totals = counts.sum(axis=-1, keepdims=True)
    chances = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    count = counts.shape[-1] - 2
    whole = _conversion(chances)
    without = np.empty((*counts.shape[:-2], count))
    for channel in range(count):
        gone = chances.copy()
        gone[..., channel] = 0.0
        without[..., channel] = _conversion(gone)
    known = whole[..., None] > 0
    return 1 - np.divide(without, whole[..., None], out=np.full_like(without, np.nan), where=known)


def _conversion(chances: FloatArray) -> FloatArray:
    """(...) chance to convert from the start, by (..., C + 1, C + 2) chances of steps."""
    count = chances.shape[-1] - 2
    inner, out = chances[..., :count, :count], chances[..., :count, count]
    reached = np.linalg.solve(np.eye(count) - inner, out[..., None])[..., 0]
    start = chances[..., count, :]
    found: FloatArray = (start[..., :count] * reached).sum(axis=-1) + start[..., count]
    return found


# --- Shapley values --------------------------------------------------------------------------


def channel_sets(paths: Paths) -> IntArray:
    """(P,) the set of channels that each path met, channel c as bit c."""
    sets = np.zeros(len(paths), dtype=np.int64)
    np.bitwise_or.at(sets, paths.owners, 1 << paths.channels.astype(np.int64))
    return sets


def shapley_of_counts(conversions: FloatArray) -> FloatArray:
    """(..., C) conversions by channel, shared evenly among the channels of each set.

    That is the Shapley value where a coalition is worth the conversions of paths that met none but
    its channels (Zhao, Mahboobi and Bagheri 2018, arXiv:1804.05327). Paths that did not convert
    do not matter.

    Args:
        conversions: (..., 2^C) conversions by set of channels, see `channel_sets`.
    """
    members = _members(conversions.shape[-1])
    return conversions @ (members / np.maximum(members.sum(axis=1, keepdims=True), 1))


def shapley_of_rates(conversions: FloatArray, paths: FloatArray) -> FloatArray:
    """(..., C) what each channel adds to the conversion rate.

    The Shapley value where a coalition is worth the conversion rate of the paths that met none but
    its channels, after Dalessandro, Perlich, Stitelman and Provost (2012,
    doi:10.1145/2351356.2351363), who take rates of exact sets; pooled, few sets are empty. One
    that no path stayed in is worth nothing. Values add up to the overall rate less that of paths
    without a touch. A channel met by those who would have converted anyway gets a value too.

    Args:
        conversions: (..., 2^C) conversions by set of channels, see `channel_sets`.
        paths: (..., 2^C) paths, likewise.
    """
    inside, all_paths = _inside(conversions), _inside(paths)
    worth = np.divide(inside, all_paths, out=np.zeros_like(inside), where=all_paths > 0)
    size = conversions.shape[-1]
    sets, members = np.arange(size), _members(size)
    count, others = members.shape[1], members.sum(axis=1)
    values = np.empty((*conversions.shape[:-1], count))
    for channel in range(count):
        without = sets[members[:, channel] == 0]
        weights = 1 / (count * comb(count - 1, others[without]))
        gains = worth[..., without | (1 << channel)] - worth[..., without]
        values[..., channel] = gains @ weights
    return values


def _members(size: int) -> npt.NDArray[np.int64]:
    """(2^C, C) 1 where a set has the channel."""
    return (np.arange(size)[:, None] >> np.arange(size.bit_length() - 1)) & 1


def _inside(numbers: FloatArray) -> FloatArray:
    """(..., 2^C) sums over all subsets of each set, bit after bit."""
    found = numbers.astype(np.float64)
    for bit in range(numbers.shape[-1].bit_length() - 1):
        halves = found.reshape(*numbers.shape[:-1], -1, 2, 1 << bit)
        halves[..., 1, :] += halves[..., 0, :]
    return found


MOST_CHANNELS = 12
"""With more, the most frequent keep their names and the rest is one: sets of channels double with
each."""
_NONE = 255
"""Code of an event that is no touch."""


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """P paths with what the model says of them.

    Attributes:
        paths: The paths.
        users: (P,) codes of users, never decreasing.
        scores: (P, C) summed influence of each channel's touches.
        full: (P,) the explained target with all events.
    """

    paths: Paths
    users: IntArray
    scores: FloatArray
    full: FloatArray


class ChannelPaths:
    """The explained histories that have an outcome, as paths.

    Needs table ``outcome_of`` (`analysis.outcomes`). Events are coded and sorted once, in the
    view's database; memory does not grow with them.

    Args:
        view: The influence tables.
        channel: Column whose values are channels; an event without one is no touch.
        touches: Behaviours that are touches; default: all.

    Attributes:
        channels: Names in the order of their codes, the most frequent first.

    Raises:
        DataError: An unknown column or behaviour, or fewer than two channels.
    """

    def __init__(
        self, view: InfluenceView, channel: str, touches: tuple[str, ...] | None = None
    ) -> None:
        self._view = view
        view.select(channel)  # refuses a name that is none
        names = ("explanation", "position", "age_seconds", "score", "full_value", "behavior")
        columns = {name: view.columns[name] for name in names} | {"value": view.columns[channel]}
        events = f"({select(columns, parts=view.parts)})"
        isin = "TRUE" if touches is None else f"behavior IN ({_listed(view, touches)})"
        named, rare = self._names(f"{events} WHERE {isin} AND value IS NOT NULL", channel)
        self.channels = (*named, OTHER) if rare else named
        cases = " ".join(
            f"WHEN value::VARCHAR = {quoted(name)} THEN {code}" for code, name in enumerate(named)
        )
        view.execute("DROP TABLE IF EXISTS touches")
        view.execute(
            'CREATE TABLE touches AS SELECT o.user_code AS "user", explanation, o.converted, '
            f"(CASE WHEN value IS NULL OR NOT ({isin}) THEN {_NONE} {cases} ELSE {len(named)} END)"
            "::UTINYINT AS channel, age_seconds, score, full_value "
            f"FROM {events} JOIN outcome_of AS o USING (explanation) "
            'ORDER BY "user", explanation, position'
        )

    def __iter__(self) -> Iterator[Explained]:
        """All paths, those of a user together, in pieces."""
        rest: pa.Table | None = None
        for table in self._view.batches("SELECT * FROM touches"):
            whole = table if rest is None else pa.concat_tables([rest, table])
            explanation = whole["explanation"].to_numpy()
            cut = int(np.flatnonzero(explanation != explanation[-1]).max(initial=-1)) + 1
            if cut:
                yield self._explained(whole.slice(0, cut))
            rest = whole.slice(cut)
        if rest is not None:
            yield self._explained(rest)

    def _names(self, touched: str, channel: str) -> tuple[tuple[str, ...], bool]:
        """Channels that keep their names, and whether there are others."""
        found = self._view.table(
            "SELECT value::VARCHAR AS name, count(*) AS events "
            f"FROM {touched} GROUP BY 1 ORDER BY events DESC, name"
        )["name"].to_pylist()
        if len(found) < 2:
            raise DataError(
                f"{f'one channel, {found[0]!r}' if found else 'no channel'}",
                where=f"column {channel!r} of the touches",
                expected="at least two, to tell what each is worth",
                fix="name another column with --channel, or more behaviours with --touches",
            )
        rare = len(found) > MOST_CHANNELS
        return tuple(found[: MOST_CHANNELS - 1] if rare else found), rare

    def _explained(self, rows: pa.Table) -> Explained:
        explanation = rows["explanation"].to_numpy()
        starts = np.flatnonzero(np.diff(explanation, prepend=explanation[0] - 1))
        code, score = rows["channel"].to_numpy(), rows["score"].to_numpy()
        touch = code != _NONE
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
        return Explained(paths, rows["user"].to_numpy()[starts], scores, full)


def _listed(view: InfluenceView, touches: tuple[str, ...]) -> str:
    query = f"SELECT DISTINCT behavior FROM ({view.select('behavior')}) ORDER BY behavior"
    known = view.table(query)["behavior"].to_pylist()
    for name in touches:
        if name not in known:
            raise DataError(
                f"no event with behaviour {name!r}",
                where="--touches",
                expected=choices(known, name),
                fix="name behaviours of the explained events",
            )
    return ", ".join(quoted(name) for name in touches)
