"""Does a backbone keep the beginnings of sequences? Found out by asking it.

Reading several sequences in a row, after keys and values read before, needs a backbone that takes
a mask of pairs of tokens and explicit places, and that keeps what it has read. Whether one does is
no matter of its name: a small example is read both ways, and the states must be equal.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from llm_influence.modeling.model import InfluenceModel, inference
from llm_influence.modeling.probe import CLOSE, FAILURES
from llm_influence.rendering.batch import EncodedBatch

EVENTS, TOKENS = 6, 2
HIDDEN = slice(1, 4)
"""Events of the example: all of them in one sequence, all but these in another."""


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What a backbone keeps.

    Attributes:
        kept: Whether a state read after kept keys and values equals the state read in one piece,
            several sequences in a row.
        token_bytes: Of the keys and values of one token, in float32.
        reach: Longest history for which it is so: some layers of a decoder may see a window of
            tokens alone. (An encoder's windows are cut by us, at any length.)
    """

    kept: bool
    token_bytes: int
    reach: float


_KNOWN: weakref.WeakKeyDictionary[InfluenceModel, Beginnings] = weakref.WeakKeyDictionary()


def beginnings_of(model: InfluenceModel) -> Beginnings:
    """Asked of a model once; a recurrent one has no keys and values, and is not asked."""
    if not model.backbone.attends:
        return Beginnings(kept=False, token_bytes=0, reach=0.0)
    if model not in _KNOWN:
        with inference(model):
            example = _Example(model)
            kept = example.agrees()
        _KNOWN[model] = Beginnings(kept, example.token_bytes, _reach(model))
    return _KNOWN[model]


def _reach(model: InfluenceModel) -> float:
    if model.backbone.kind == "encoder":
        return float("inf")
    config = model.backbone.model.config
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return float(min((window for window in windows if window), default=float("inf")))


class _Example:
    """Two sequences of random vectors, read one by one as the model does it, and together."""

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
        """Whether the two sequences read together have the states of those read alone."""
        try:
            alone = torch.cat([self._alone(hidden=False), self._alone(hidden=True)])
            together = self._together()
        except FAILURES:
            return False
        moved = (alone - together).abs().max().item()
        return moved <= CLOSE * max(1.0, alone.abs().mean().item())

    def _alone(self, *, hidden: bool) -> Tensor:
        """(H,) state at the last token, as the model reads it itself."""
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
        )
        batch = batch.hide(self.kept[None]) if hidden else batch
        return self.model.states(batch, self.vectors)[0, -1]

    def _together(self) -> Tensor:
        """The same states, both in one row, the tokens of the first event read before."""
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
            raise RuntimeError("nothing was kept")
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
