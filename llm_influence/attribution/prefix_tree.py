"""Sequences as a tree of shared prefixes, cut into paths so that every token is computed once.

A state of a causal model depends only on the tokens before it, so sequences with a common prefix
share its states. The tree is cut into heavy paths (Sleator & Tarjan 1983): at each node the path
goes on to the child with the most sequences below it, and every other child begins a new path. A
path can be computed once the tokens before it have been, so paths are computed level by level, and
there are at most log2(M) + 1 levels. Leave-one-out over E events is one long path and E short ones,
half of the tokens; all 2^n coalitions of n one-token events are 2^n tokens instead of n 2^(n - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llm_influence.numerics import GOLDEN_GAMMA, mix64
from llm_influence.types import BoolArray, IntArray

Symbols = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Paths over M distinct sequences; N nodes in all, and each of them lies on one path.

    Attributes:
        nodes: (M, T) node of each token; beyond a sequence's end it means nothing.
        ends: (N,) the sequence that ends at a node, -1 for none.
        rows: (P,) a sequence that runs through the whole of a path.
        starts: (P,) place in that sequence where the path begins.
        levels: (P,) number of paths that must be computed before this one.
        needed: (N,) bool, nodes that a later path continues.
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
    total = np.full(columns[0].shape, GOLDEN_GAMMA)
    for column in columns:
        total = mix64(total + column.astype(np.uint64))
    return total | np.uint64(1)


def event_symbols(symbols: Symbols, events: IntArray) -> Symbols:
    """Symbols for a token that may attend to all of its event: equal ones have equal events.

    Args:
        symbols: (V,) of the tokens, their places in them.
        events: (V,) a number for each event of each sequence, the same for all of its tokens.
    """
    sums = np.zeros(int(events.max(initial=-1)) + 1, dtype=np.uint64)
    np.add.at(sums, events, symbols)  # places differ, so the order is in the sum
    return token_symbols([symbols, sums[events]])


def _sorted(symbols: Symbols) -> IntArray:
    """Order of the rows by prefix, shorter ones first."""
    big_endian = np.ascontiguousarray(symbols.astype(">u8"))
    rows = big_endian.view(np.dtype((np.void, big_endian.itemsize * symbols.shape[1])))
    return np.argsort(rows.ravel(), kind="stable")


def _path_begins(parents: IntArray, weights: IntArray) -> BoolArray:
    """(N,) bool, nodes where a path begins: all children but the heaviest."""
    order = np.lexsort((-weights, parents))
    siblings = parents[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = siblings[1:] != siblings[:-1]
    begins = np.ones(len(parents), dtype=bool)
    begins[order[first & (siblings >= 0)]] = False
    return begins


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """M distinct sequences of up to T visible tokens; values beyond a sequence's end are unused.

    Attributes:
        symbols: (M, T) tokens as numbers: after equal prefixes, equal ones have equal states.
        lengths: (M,) tokens of each.
        positions: (M, T) the token's place in its history. Removal ``mask`` leaves gaps.
        order: (M, T) a token attends to all tokens whose number here is not larger.
        which: (M, T) the token's input vector, a row of ``inputs``.
        inputs: (U, 2 + A) distinct inputs: token, neutral, added ids (`Renderings.records`).
    """

    symbols: Symbols
    lengths: IntArray
    positions: IntArray
    order: IntArray
    which: IntArray
    inputs: IntArray

    @classmethod
    def of(
        cls, records: IntArray, owner: IntArray, event: IntArray, *, whole_events: bool
    ) -> Sequences:
        """From what `Renderings.records` gives.

        Args:
            records: (V, 3 + A) token, place, neutral, added ids.
            owner: (V,) the sequence of each, growing from 0 to M - 1.
            event: (V,) its event, -1 for the prompt.
            whole_events: A token attends to all of its event (encoders), not only to earlier tokens
                (decoders).
        """
        token, place, *rest = records.T
        symbols = token_symbols([token, place, event, *rest])
        if whole_events:
            width = int(event.max(initial=-1)) + 2
            symbols = event_symbols(symbols, owner * width + event + 1)
        lengths = np.bincount(owner)
        column = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        inputs = np.column_stack([token, *rest])
        _, first, which = np.unique(
            token_symbols(list(inputs.T)), return_index=True, return_inverse=True
        )

        def pad(values: np.ndarray) -> np.ndarray:
            padded = np.zeros((len(lengths), int(lengths.max())), dtype=values.dtype)
            padded[owner, column] = values
            return padded

        return cls(
            symbols=pad(symbols),
            lengths=lengths,
            positions=pad(place),
            order=pad(event if whole_events else place),
            which=pad(which),
            inputs=inputs[first],
        )

    def take(self, rows: IntArray) -> Sequences:
        """Some of the sequences."""
        return replace(
            self,
            symbols=self.symbols[rows],
            lengths=self.lengths[rows],
            positions=self.positions[rows],
            order=self.order[rows],
            which=self.which[rows],
        )

    def alike(self) -> IntArray:
        """The numbers of the sequences, sorted by prefix."""
        return np.lexsort(self.symbols.T[::-1])
