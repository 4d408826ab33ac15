"""Reads a tree of sequences with the model: several paths in a row, after keys and values kept.

Every token is read once. A row holds the new tokens of several paths, and before them the tokens
that these paths go on from, whose keys and values are taken from a store; a mask keeps the paths
of a row apart. So no row is padded for the sake of a longer one beside it, however much the
lengths of the paths differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from llm_influence.attribution.prefixes import (
    Symbols,
    event_symbols,
    plan_paths,
    token_symbols,
)
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import BoolArray, IntArray

ROW = 64
"""Tokens of a row, if the longest path has no more: short paths share rows."""
PAST_COST = 0.25
"""What a token taken from the store costs, as a part of a new one's cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """M distinct sequences of up to T visible tokens; beyond a sequence's end nothing is meant.

    Attributes:
        symbols: (M, T) tokens as numbers: equal ones after equal beginnings are read alike.
        lengths: (M,) tokens of each.
        positions: (M, T) the token's place in its history. Removal ``mask`` leaves gaps.
        order: (M, T) what a token attends to: all tokens whose number is not larger.
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
            event: (V,) its event, -1 for the frame.
            whole_events: A token attends to all of its event (encoders), not to what stands before
                it alone (decoders).
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
        """The numbers of the sequences, those that begin alike together."""
        return np.lexsort(self.symbols.T[::-1])


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """Tokens of the paths of some rows, one after the other.

    Attributes:
        path: (S,) number of the token's path among those of the batch.
        sequence: (S,) the sequence it is taken from.
        place: (S,) its place in that sequence.
        row: (S,) the row it stands in.
        column: (S,) its place in the row.
    """

    path: IntArray
    sequence: IntArray
    place: IntArray
    row: IntArray
    column: IntArray

    @property
    def width(self) -> int:
        """Columns that the rows need."""
        return int(self.column.max(initial=-1)) + 1

    @classmethod
    def of(cls, sequences: IntArray, begins: IntArray, ends: IntArray, rows: IntArray) -> _Tokens:
        """Tokens ``begins`` to ``ends`` of each path's sequence; paths stand in order of row."""
        lengths = ends - begins
        path = np.repeat(np.arange(len(sequences)), lengths)
        first = np.cumsum(lengths) - lengths
        place = np.arange(len(path)) - first[path] + begins[path]
        row = rows[path]
        opens = np.searchsorted(row, row)  # the row's first token
        return cls(path, sequences[path], place, row, np.arange(len(path)) - opens)


class PrefixReader:
    """Reads the paths of some sequences.

    Args:
        model: A model that keeps beginnings, in inference mode.
        sequences: M sequences.
        vectors: (U, H) their input vectors.

    Attributes:
        plan: Their paths.
        states: (M, H) float32 states at the last tokens of the sequences, once `read` all.
    """

    def __init__(self, model: InfluenceModel, sequences: Sequences, vectors: Tensor) -> None:
        self._model, self._sequences, self._vectors = model, sequences, vectors
        self.plan = plan_paths(sequences.symbols, sequences.lengths)
        self._slots = np.cumsum(self.plan.needed) - 1
        self._store: list[tuple[Tensor, Tensor]] = []  # of each layer (slots, heads, size)
        self._new = sequences.lengths[self.plan.rows] - self.plan.starts
        self.states = vectors.new_empty(len(sequences.lengths), vectors.shape[1])

    def read(self, budget: int) -> Tensor:
        """Read all paths in batches of ``budget`` tokens; returns `states`."""
        for level in range(int(self.plan.levels.max(initial=-1)) + 1):
            rows = self._rows(np.flatnonzero(self.plan.levels == level))
            while rows:
                count = self._fitting(rows, budget)
                self._read(rows[:count])
                rows = rows[count:]
        return self.states

    def _rows(self, paths: IntArray) -> list[IntArray]:
        """Paths put together in rows: the longest with the shortest, as many as a row holds."""
        by_length = paths[np.argsort(-self._new[paths], kind="stable")]
        lengths = self._new[by_length].tolist()
        room = max(ROW, lengths[0])
        rows: list[list[int]] = []
        first, last = 0, len(lengths) - 1
        while first <= last:
            row, left = [first], room - lengths[first]
            first += 1
            while first <= last and lengths[last] <= left:
                left -= lengths[last]
                row.append(last)
                last -= 1
            rows.append(row)
        return [by_length[row] for row in rows]

    def _fitting(self, rows: list[IntArray], budget: int) -> int:
        """How many of the rows make a batch under the budget, at least one."""
        new = np.array([self._new[row].sum() for row in rows])
        past = np.array([self.plan.starts[row].sum() for row in rows])
        width = np.maximum.accumulate(new) + PAST_COST * np.maximum.accumulate(past)
        return max(1, int(np.sum(width * np.arange(1, len(rows) + 1) <= budget)))

    def _read(self, rows: list[IntArray]) -> None:
        """Read rows of paths; keep what is needed of them."""
        paths = np.concatenate(rows)
        row = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
        sequences, starts = self.plan.rows[paths], self.plan.starts[paths]
        past = _Tokens.of(sequences, np.zeros_like(starts), starts, row)
        new = _Tokens.of(sequences, starts, self._sequences.lengths[sequences], row)
        shape = len(rows), past.width, new.width
        nodes = self.plan.nodes[new.sequence, new.place]
        keeps = self.plan.needed[nodes]
        cache = self._past(past, shape) if past.width or keeps.any() else None
        states = self._model.attend_pairs(
            self._inputs(new, shape), *self._mask(past, new, shape), cache
        )
        if cache is not None and keeps.any():
            self._keep(cache, past.width, new, nodes, keeps)
        ends = self.plan.ends[nodes]
        last = ends >= 0
        at = self._tensor(new.row[last]), self._tensor(new.column[last])
        self.states[self._tensor(ends[last])] = states[at].to(self.states)

    def _inputs(self, new: _Tokens, shape: tuple[int, int, int]) -> Tensor:
        which = np.zeros((shape[0], shape[2]), dtype=np.int64)
        which[new.row, new.column] = self._sequences.which[new.sequence, new.place]
        return self._vectors[self._tensor(which)]

    def _mask(
        self, past: _Tokens, new: _Tokens, shape: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, K) who sees whom, and (B, K) where every token stands."""
        height, before, width = shape
        path, order, position = (np.full((height, before + width), filler) for filler in (-1, 0, 0))
        for tokens, shift in ((past, 0), (new, before)):
            at = tokens.row, tokens.column + shift
            path[at] = tokens.path
            order[at] = self._sequences.order[tokens.sequence, tokens.place]
            position[at] = self._sequences.positions[tokens.sequence, tokens.place]
        paths, orders = self._tensor(path), self._tensor(order)
        same = paths[:, before:, None] == paths[:, None, :]
        earlier = orders[:, None, :] <= orders[:, before:, None]
        # padding is a path of its own and sees padding alone
        return same & earlier, self._tensor(position)

    def _past(self, past: _Tokens, shape: tuple[int, int, int]) -> DynamicCache:
        """Keys and values of the tokens that the rows go on from."""
        cache = DynamicCache()
        if past.width:
            slots = np.zeros(shape[:2], dtype=np.int64)
            nodes = self.plan.nodes[past.sequence, past.place]
            slots[past.row, past.column] = self._slots[nodes]
            index = self._tensor(slots)
            for number, (keys, values) in enumerate(self._store):
                taken = keys[index].transpose(1, 2), values[index].transpose(1, 2)
                cache.update(*taken, number)
        return cache

    def _keep(
        self, cache: DynamicCache, before: int, new: _Tokens, nodes: IntArray, keeps: BoolArray
    ) -> None:
        slots = self._tensor(self._slots[nodes[keeps]])
        at = self._tensor(new.row[keeps]), self._tensor(new.column[keeps] + before)
        count = int(self.plan.needed.sum())
        if not self._store:
            self._store = [
                (_room(keys, count), _room(values, count)) for keys, values in _layers(cache)
            ]
        for (keys, values), (new_keys, new_values) in zip(self._store, _layers(cache), strict=True):
            keys[slots] = new_keys.transpose(1, 2)[at]
            values[slots] = new_values.transpose(1, 2)[at]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._vectors.device)


def _layers(cache: DynamicCache) -> Iterator[tuple[Tensor, Tensor]]:
    for layer in cache.layers:
        yield layer.keys, layer.values


def _room(part: Tensor, tokens: int) -> Tensor:
    """(tokens, heads, size) to be filled, from (B, heads, K, size) keys or values."""
    return part.new_empty(tokens, part.shape[1], part.shape[3])
