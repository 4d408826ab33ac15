"""Reads a tree of sequences with the model: each path once, after its parent's keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from llm_influence.attribution.budget import TokenBudget
from llm_influence.attribution.prefixes import Path, paths
from llm_influence.attribution.renderings import OWN
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import IntArray

COPIED = 4
"""A key that is copied costs about this many times less than a token that is read."""
FEW, ALIKE = 8, 0.8
"""A batch of at least so many paths takes none that is shorter than this share of its longest."""
CLOSE = 1e-3
"""How far a state read in parts may be from the state read in one piece."""
FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


Beginnings = list[tuple[Tensor, Tensor]]
"""(C, heads, P, width) keys and values of every layer, of what stands before C paths."""


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Keys and values of a batch of paths that were read.

    Attributes:
        layers: (B, heads, P + N, width) keys and values of every layer: P places for what stands
            before a path, then N for its own tokens.
        before: P.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    before: int

    def first(self, rows: Sequence[int], depths: Sequence[tuple[int, int]]) -> Beginnings:
        """The first tokens of some of the paths, copied side by side.

        Args:
            rows: C paths of this batch.
            depths: For each, how many tokens stand before the path, and how many are wanted.
        """
        longest = max(wanted for _, wanted in depths)
        place = torch.arange(longest).expand(len(rows), -1)
        own, wanted = (torch.tensor(column)[:, None] for column in zip(*depths, strict=True))
        place = torch.where(place < own, place, place - own + self.before)
        place = place.where(torch.arange(longest) < wanted, 0).to(self.layers[0][0].device)
        row = torch.tensor(rows, device=place.device)[:, None]
        return [
            (keys[row, :, place].transpose(1, 2), values[row, :, place].transpose(1, 2))
            for keys, values in self.layers
        ]


class PrefixReader:
    """Reads paths, and where they end keeps the state.

    Args:
        model: The model, in inference mode.
        records: (V, 3 + A) tokens (`Renderings.records`).
        means: (fields + 1, H) vectors of neutral tokens.
        budget: Tokens of a batch.
    """

    def __init__(
        self, model: InfluenceModel, records: IntArray, means: Tensor, budget: TokenBudget
    ) -> None:
        self._model, self._means, self._budget = model, means, budget
        self._records = torch.from_numpy(np.ascontiguousarray(records))

    def read(self, roots: Sequence[Path], sequences: int) -> Tensor:
        """(sequences, H) states after the last token of every sequence."""
        states = torch.empty(sequences, self._model.backbone.width)
        for part in self._batches(roots):
            self._descend(part, None, states)
        return states

    def _descend(self, part: Sequence[Path], beginnings: Beginnings | None, states: Tensor) -> None:
        """Read a batch of paths, then batch by batch those that branch off them."""
        read, found = self._run(part, beginnings)
        row_of = {id(path): row for row, path in enumerate(part)}
        parent = {id(child): path for path in part for child in path.children}
        for row, path in enumerate(part):
            for sequence, place in path.ends:
                states[sequence] = found[row, place]
        for batch in self._batches([child for path in part for child in path.children]):
            parents = [parent[id(child)] for child in batch]
            rows = [row_of[id(path)] for path in parents]
            depths = [(p.depth, c.depth) for p, c in zip(parents, batch, strict=True)]
            self._descend(batch, read.first(rows, depths), states)

    def _batches(self, some: Sequence[Path]) -> Iterator[list[Path]]:
        """Paths of like length together, within the budget."""
        ordered = sorted(some, key=lambda path: (-len(path.tokens), -path.depth))
        batch: list[Path] = []
        deepest = 0
        for path in ordered:
            deepest = max(deepest, path.depth)
            longest = len(batch[0].tokens) if batch else len(path.tokens)
            full = (len(batch) + 1) * (longest + deepest // COPIED) > self._budget.tokens
            uneven = len(batch) >= FEW and len(path.tokens) < ALIKE * longest
            if batch and (full or uneven):
                yield batch
                batch, deepest = [], path.depth
            batch.append(path)
        if batch:
            yield batch

    def _run(self, part: Sequence[Path], beginnings: Beginnings | None) -> tuple[_Read, Tensor]:
        """Keys and values, and (B, N, H) states of a batch of paths."""
        model, device = self._model, self._model.device
        lengths = torch.tensor([len(path.tokens) for path in part])
        depths = torch.tensor([path.depth for path in part])
        longest, before = int(lengths.max()), 0
        if beginnings is not None:
            before = beginnings[0][0].shape[2]
        rows = torch.zeros(len(part), longest, dtype=torch.int64)
        segments = torch.zeros(len(part), longest, dtype=torch.int64)
        for row, path in enumerate(part):
            rows[row, : len(path.tokens)] = torch.tensor(path.tokens)
            segments[row, : len(path.tokens)] = torch.tensor(path.segments)
        records = self._records[rows].to(device)
        real = torch.arange(longest) < lengths[:, None]
        seen = _seen(segments, real, depths, before, decoder=model.backbone.kind == "decoder")
        vectors = embedded(model, records[..., 0], records[..., 3:], records[..., 2], self._means)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(beginnings or []):
            cache.update(keys, values, layer)
        states = (
            model.body(
                inputs_embeds=vectors,
                attention_mask=_as_mask(model, seen.to(device), vectors.dtype),
                position_ids=records[..., 1] + model.backbone.first_position,
                past_key_values=cache,
                use_cache=True,
            )
            .last_hidden_state.float()
            .cpu()
        )
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return _Read(layers, before), states


def _seen(segments: Tensor, real: Tensor, depths: Tensor, before: int, *, decoder: bool) -> Tensor:
    """(B, 1, N, before + N) bool, whom each new token attends to."""
    size = segments.shape[1]
    if decoder:
        order = torch.arange(size).expand(len(segments), -1)
        own = order[:, None, :] <= order[:, :, None]
    else:  # an event's tokens see each other
        own = segments[:, None, :] <= segments[:, :, None]
    own = (own & real[:, None, :]) | torch.eye(size, dtype=torch.bool)
    past = (torch.arange(before) < depths[:, None])[:, None, :].expand(-1, size, -1)
    return torch.cat([past, own], dim=2)[:, None]


def _as_mask(model: InfluenceModel, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """In the form that the attention takes: eager attention adds numbers (cf. `encoder_masks`)."""
    if model.body.config._attn_implementation != "eager":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def embedded(
    model: InfluenceModel, ids: Tensor, added: Tensor, neutral: Tensor, means: Tensor
) -> Tensor:
    """(B, T, H) input vectors; where ``neutral`` names a field, its mean stands in for the word."""
    if model.encoder.style != "token":
        own = model.body.get_input_embeddings()(ids)
        return torch.where((neutral == OWN)[..., None], own, means[neutral.clamp(min=-1)])
    own = torch.where((neutral == OWN)[..., None], model.units(ids), means[neutral.clamp(min=-1)])
    return own + model.units.learned(added)


@torch.no_grad()
def keeps_beginnings(model: InfluenceModel) -> bool:
    """Whether a state read after kept keys and values equals the state read in one piece.

    Asked by trying it, on a few made-up events: backbones that keep none, that see a window of
    places in the list or that go by places in the list where they are told others, say no.
    """
    width, size, generator = model.backbone.width, 24, torch.Generator().manual_seed(0)
    vectors = torch.randn(size, width, generator=generator).to(model.device)
    event = np.arange(size) // 6
    place = np.arange(size) + 3 * event  # gaps, as removal `mask` leaves them
    first = np.stack([np.zeros(size, dtype=np.int64), place, np.arange(size)], axis=1)
    second = first.copy()
    second[size // 2 :, 2] = first[: size // 2, 2]
    both, owner = np.concatenate([first, second]), np.repeat([0, 1], size)
    try:
        reader = PrefixReader(model, both, vectors, TokenBudget(model, 4096))
        found = reader.read(paths(both, owner, np.tile(event, 2)), 2)
        whole = torch.cat([_in_one_piece(model, some, event, vectors) for some in (first, second)])
    except FAILURES:
        return False
    return bool((found - whole).abs().max() <= CLOSE * max(1.0, float(whole.abs().max())))


def _in_one_piece(
    model: InfluenceModel, records: IntArray, event: IntArray, vectors: Tensor
) -> Tensor:
    """(1, H) state after the last token, the places between being there and hidden."""
    place = torch.from_numpy(records[:, 1])
    size = int(place[-1]) + 1
    between = torch.from_numpy(event)[torch.searchsorted(place.contiguous(), torch.arange(size))]
    shown = torch.zeros(1, size, dtype=torch.bool)
    shown[0, place] = True
    inputs = torch.zeros(1, size, vectors.shape[1], device=vectors.device)
    inputs[0, place.to(inputs.device)] = vectors[torch.from_numpy(records[:, 2]).to(inputs.device)]
    nothing = torch.zeros(1, size, dtype=torch.long)
    batch = EncodedBatch(
        input_ids=nothing,
        attention_mask=shown,
        event_index=between[None],
        field_index=nothing - 1,
        added_ids=torch.empty(1, size, 0, dtype=torch.long),
        ends=nothing[:, :1],
        num_events=torch.tensor([int(event[-1]) + 1]),
    )
    return model.query(batch.to(model.device), inputs).float().cpu()
