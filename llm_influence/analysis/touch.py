"""To whom conversions are laid, from what was seen alone: touch rules, Markov, Shapley.

A path is what a user met before an outcome, converted or not: touches, each of a channel. All
functions here are of arrays and know neither tables nor models. None of them is a causal
effect: docs/analysis_attribution.md says when each misleads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import comb

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
