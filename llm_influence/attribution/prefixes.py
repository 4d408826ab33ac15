"""Which tokens are read only once: a tree of the sequences, cut into paths.

A state of a causal model depends on what stands before it alone, so sequences that begin alike
share the nodes of their common beginning. The tree is cut into heavy paths (Sleator & Tarjan
1983): at each node the path goes on to the child with the most sequences below it, and every
other child begins a path of its own. A path can be read once the tokens before it have been, so
paths are read level by level, and there are at most log2(M) + 1 levels. Leave-one-out over E
events is one long path and E short ones, half of the tokens; all 2^n coalitions of n one-token
events are 2^n tokens instead of n 2^(n - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_influence.types import BoolArray, IntArray

Symbols = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Paths over M distinct sequences; N nodes in all, and each of them lies on one path.

    Attributes:
        nodes: (M, T) node of each token; beyond a sequence's end it means nothing.
        ends: (N,) the sequence that ends at a node, -1 for none.
        rows: (P,) a sequence that runs through the whole of a path.
        starts: (P,) place in that sequence where the path begins: what stands before it is read.
        levels: (P,) paths that have to be read before this one, one after the other.
        needed: (N,) bool, nodes that a later path goes on from.
    """

    nodes: IntArray
    ends: IntArray
    rows: IntArray
    starts: IntArray
    levels: IntArray
    needed: BoolArray


def plan_paths(symbols: Symbols, lengths: IntArray) -> Plan:
    """Cut the tree of some sequences into paths.

    Args:
        symbols: (M, T) tokens as numbers (`token_symbols`), 0 beyond a sequence's end and nowhere
            else; no two rows are equal.
        lengths: (M,) tokens of each sequence.
    """
    order = _sorted(symbols)
    symbols, sizes = symbols[order], lengths[order]
    places = np.arange(symbols.shape[1])
    differs = np.ones(symbols.shape, dtype=bool)
    differs[1:] = np.logical_or.accumulate(symbols[1:] != symbols[:-1], axis=1)
    inside = places < sizes[:, None]
    opened = differs & inside  # where a sequence leaves the one sorted before it
    numbers = np.where(opened, np.cumsum(opened).reshape(opened.shape) - 1, -1)
    nodes = np.maximum.accumulate(numbers, axis=0)
    count = int(opened.sum())

    parents = np.full(count, -1)
    before = np.concatenate([np.full((len(nodes), 1), -1), nodes[:, :-1]], axis=1)
    parents[numbers[opened]] = before[opened]
    begins = _path_begins(parents, np.bincount(nodes[inside], minlength=count))
    last = nodes[np.arange(len(nodes)), sizes - 1]
    is_leaf = np.ones(count, dtype=bool)
    is_leaf[parents[parents >= 0]] = False

    through = np.flatnonzero(is_leaf[last])  # a path ends at a leaf
    marks = begins[nodes[through]] & inside[through]
    starts = symbols.shape[1] - 1 - np.argmax(marks[:, ::-1], axis=1)
    needed = np.zeros(count, dtype=bool)
    needed[nodes[through][places < starts[:, None]]] = True
    ends = np.full(count, -1)
    ends[last] = order
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Plan(nodes[back], ends, order[through], starts, marks.sum(axis=1) - 1, needed)


def token_symbols(columns: Sequence[IntArray]) -> Symbols:
    """One number for the numbers at the same place of each column, never 0.

    Different tokens get different numbers but for a chance of about T² / 2⁶⁴ among T of them. It
    is the finaliser of SplitMix64 (Steele et al. 2014) over a running sum.
    """
    found = np.full(columns[0].shape, 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in columns:
        found += column.astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
        found ^= found >> np.uint64(31)
    return found | np.uint64(1)


def event_symbols(symbols: Symbols, events: IntArray) -> Symbols:
    """Symbols where a token may attend to all of its event: equal ones have equal events.

    Args:
        symbols: (V,) of the tokens, their places in them.
        events: (V,) a number for each event of each sequence, the same for all of its tokens.
    """
    sums = np.zeros(int(events.max(initial=-1)) + 1, dtype=np.uint64)
    np.add.at(sums, events, symbols)  # places differ, so the order is in the sum
    return token_symbols([symbols, sums[events]])


def _sorted(symbols: Symbols) -> IntArray:
    """Order of the rows in which those that begin alike stand together, shorter ones first."""
    big_endian = np.ascontiguousarray(symbols.astype(">u8"))
    rows = big_endian.view(np.dtype((np.void, big_endian.itemsize * symbols.shape[1])))
    return np.argsort(rows.ravel(), kind="stable")


def _path_begins(parents: IntArray, weights: IntArray) -> BoolArray:
    """(N,) bool, nodes that do not go on from their parent: all children but the heaviest."""
    order = np.lexsort((-weights, parents))
    siblings = parents[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = siblings[1:] != siblings[:-1]
    begins = np.ones(len(parents), dtype=bool)
    begins[order[first & (siblings >= 0)]] = False
    return begins
