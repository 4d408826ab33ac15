"""Prefix cache: states of many sequences, with every shared prefix computed once.

A row of a batch holds the new tokens of several paths of the prefix tree, and before them the
tokens that these paths continue, whose keys and values come from a store. A mask separates the
paths of a row. So no row is padded to the length of another, however much their lengths differ.

This needs a backbone that accepts a mask of pairs of tokens, explicit positions and a cache. A
small example tests whether one does (`prefix_support`): its states must equal those without it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from llm_influence.attribution.prefix_tree import Sequences, plan_paths
from llm_influence.modeling.backbone import CLOSE, FAILURES, inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import RECORD, EncodedBatch
from llm_influence.types import BoolArray, IntArray

ROW = 64
"""Tokens of a row, unless the longest path has more: short paths share rows."""
PAST_COST = 0.25
"""Cost of a token taken from the store, in costs of a new one."""
EVENTS, TOKENS = 6, 2
HIDDEN = slice(1, 4)
"""Events of the example that the second of its two sequences leaves out."""


@dataclass(frozen=True, slots=True)
class PrefixSupport:
    """How far a backbone supports the prefix cache.

    Attributes:
        works: Whether a state computed after cached keys and values, several sequences in a row,
            equals the state computed in one piece.
        token_bytes: Bytes of the keys and values of one token in float32.
        reach: Longest history for which it works: some layers of a decoder may see only a window
            of tokens. (The windows of an encoder are cut by the library, at any length.)
    """

    works: bool
    token_bytes: int
    reach: float


_KNOWN: weakref.WeakKeyDictionary[InfluenceModel, PrefixSupport] = weakref.WeakKeyDictionary()


def prefix_support(model: InfluenceModel) -> PrefixSupport:
    """Whether the backbone supports the cache; tested once.

    A recurrent one has no keys. Positions that count from the end differ for every sequence.
    """
    if not model.backbone.attends or model.config.positions == "end":
        return PrefixSupport(works=False, token_bytes=0, reach=0.0)
    if model not in _KNOWN:
        with inference(model):
            example = _Example(model)
            works = example.agrees()
        _KNOWN[model] = PrefixSupport(works, example.token_bytes, _reach(model))
    return _KNOWN[model]


def _reach(model: InfluenceModel) -> float:
    if model.backbone.kind == "encoder":
        return float("inf")
    config = model.backbone.model.config
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return float(min((window for window in windows if window), default=float("inf")))


class _Example:
    """Two sequences of random vectors, computed one by one by the model, and together."""

    def __init__(self, model: InfluenceModel) -> None:
        self.model, self.token_bytes = model, 0
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(1, EVENTS * TOKENS, model.backbone.input_width, generator=generator)
        self.vectors = vectors.to(model.device)
        self.event = torch.arange(EVENTS, device=model.device).repeat_interleave(TOKENS)
        self.kept = torch.ones(EVENTS, dtype=torch.bool, device=model.device)
        self.kept[HIDDEN] = False
        self.shown = torch.nonzero(self.kept[self.event])[:, 0]

    def agrees(self) -> bool:
        """Whether both ways give the same states."""
        try:
            alone = torch.cat([self._alone(hidden=False), self._alone(hidden=True)])
            together = self._together()
        except FAILURES:
            return False
        moved = (alone - together).abs().max().item()
        return moved <= CLOSE * max(1.0, alone.abs().mean().item())

    def _alone(self, *, hidden: bool) -> Tensor:
        """(H,) state at the last token, by the model itself."""
        event = self.event[None]
        batch = EncodedBatch(
            input_ids=torch.zeros_like(event),
            added_ids=torch.empty(1, len(self.event), 0, dtype=torch.long),
            attention_mask=torch.ones_like(event, dtype=torch.bool),
            event_index=event,
            field_index=torch.full_like(event, -1),
            ends=torch.zeros(1, EVENTS + 1, dtype=torch.long),
            num_events=torch.tensor([EVENTS]),
            when=torch.zeros(1, dtype=torch.long),
            records=torch.zeros(1, EVENTS, len(RECORD), dtype=torch.long),
            gap=torch.zeros(1, dtype=torch.long),
        )
        batch = batch.hide(self.kept[None]) if hidden else batch
        return self.model.states(batch, self.vectors)[0, -1]

    def _together(self) -> Tensor:
        """(2 H,) the same states, both in one row, after the cached tokens of the first event."""
        first = torch.arange(TOKENS, device=self.event.device)
        rest = torch.arange(TOKENS, len(self.event), device=self.event.device)
        cache, past = DynamicCache(), DynamicCache()
        self._read(first, torch.zeros_like(first), first, torch.zeros_like(first), cache)
        twice = torch.cat([first, first])
        for number, layer in enumerate(cache.layers):
            past.update(layer.keys[:, :, twice], layer.values[:, :, twice], number)
            self.token_bytes += 4 * (layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel())
        tokens = torch.cat([rest, self.shown[TOKENS:]])
        sequence = (torch.arange(len(tokens), device=tokens.device) >= len(rest)).long()
        before = torch.arange(len(twice), device=tokens.device) // TOKENS
        keys = torch.cat([twice, tokens]), torch.cat([before, sequence])
        states = self._read(tokens, sequence, *keys, past)
        if past.get_seq_length() != len(keys[0]):
            raise RuntimeError("the cache was not used")
        return torch.cat([states[len(rest) - 1], states[-1]])

    def _read(
        self,
        tokens: Tensor,
        sequence: Tensor,
        key_tokens: Tensor,
        key_sequence: Tensor,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        order = (
            self.event
            if self.model.backbone.kind == "encoder"
            else torch.arange(len(self.event), device=self.event.device)
        )
        allowed = (sequence[:, None] == key_sequence) & (
            order[key_tokens] <= order[tokens][:, None]
        )
        vectors = self.vectors[:, tokens]
        return self.model.attend_pairs(vectors, allowed[None], key_tokens[None], cache)[0]


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
    """Computes the states of some sequences, path by path.

    Args:
        model: A model that supports the cache, in inference mode.
        sequences: M sequences.
        vectors: (U, H) their input vectors.

    Attributes:
        plan: Their paths.
        states: (M, H) float32 states at the last tokens of the sequences, filled by `read`.
    """

    def __init__(self, model: InfluenceModel, sequences: Sequences, vectors: Tensor) -> None:
        self._model, self._sequences, self._vectors = model, sequences, vectors
        self.plan = plan_paths(sequences.symbols, sequences.lengths)
        self._slots = np.cumsum(self.plan.needed) - 1
        self._store: list[tuple[Tensor, Tensor]] = []  # of each layer (slots, heads, size)
        self._new = sequences.lengths[self.plan.rows] - self.plan.starts
        self.states = vectors.new_empty(len(sequences.lengths), vectors.shape[1])

    def read(self, budget: int) -> Tensor:
        """Compute all paths in batches of ``budget`` tokens; returns `states`."""
        for level in range(int(self.plan.levels.max(initial=-1)) + 1):
            rows = self._rows(np.flatnonzero(self.plan.levels == level))
            while rows:
                count = self._fitting(rows, budget)
                self._read(rows[:count])
                rows = rows[count:]
        return self.states

    def _rows(self, paths: IntArray) -> list[IntArray]:
        """Paths combined into rows: the longest with the shortest, as many as fit."""
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
        """Compute rows of paths; store the keys and values that later paths need."""
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
        """(B, Q, K) which token sees which, and (B, K) positions."""
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
        """Stored keys and values of the tokens that the rows continue."""
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
    """An empty (tokens, heads, size) store for (B, heads, K, size) keys or values."""
    return part.new_empty(tokens, part.shape[1], part.shape[3])
