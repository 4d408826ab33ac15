"""The engine computes states after many renderings: each once, with shared prefixes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.prefix_cache import PrefixReader, prefix_support
from llm_influence.attribution.prefix_tree import Sequences
from llm_influence.attribution.renderings import OWN, Renderings
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.template import FIELDS
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.types import FloatArray, IntArray

ON_CPU = 1024
"""Tokens of a batch on a CPU; more are no faster, and lengths would differ more."""
SMALLEST, LARGEST = 256, 262_144
SHARE = 0.25
"""Share of an accelerator's free memory for the tokens of a batch."""
WIDTHS = 24
"""Numbers that a layer holds for a token at once, in widths of a state."""


class TokenBudget:
    """Tokens of a batch, padding included; it affects speed and memory alone.

    It is not measured by time: then two runs would cut batches differently and differ in the last
    digit.

    Args:
        model: Its size and device decide.
        fixed: The budget; default: by device and free memory.

    Attributes:
        tokens: Tokens of the next batch.
    """

    def __init__(self, model: InfluenceModel, fixed: int | None = None) -> None:
        self.tokens = fixed or _fitting(model)

    def halve(self) -> bool:
        """Halve the budget after memory ran out; False if it is too small to try."""
        self.tokens //= 2
        return self.tokens >= SMALLEST


def batches(lengths: IntArray, tokens: int) -> Iterator[IntArray]:
    """Numbers of the rows of each batch, longest rows first.

    Args:
        lengths: (R,) tokens of every row.
        tokens: Tokens of a batch, padding to its longest row included; a longer row is a batch
            of its own.
    """
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _fitting(model: InfluenceModel) -> int:
    if model.device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(model.device)
    layers = model.backbone.model.config.num_hidden_layers
    kept = 2 * layers * model.backbone.width  # keys and values of all layers
    a_token = 4 * (kept + WIDTHS * model.backbone.width)
    return int(min(LARGEST, max(SMALLEST, SHARE * free // a_token)))


@torch.no_grad()
def mean_vectors(model: InfluenceModel) -> Tensor:
    """(fields + 1, H) average input vector of each field; the last row is that of all of them."""
    cache = model.encoder.token_cache
    if not isinstance(cache, IdTokenCache):
        words = model.body.get_input_embeddings().weight
        return words.mean(dim=0).expand(len(FIELDS) + 1, -1)
    vectors = model.embeddings(slice(None))
    field = torch.from_numpy(cache.fields).to(vectors.device)
    rows = [vectors[field == number] for number in range(len(FIELDS))]
    means = [row.mean(dim=0) if len(row) else vectors.mean(dim=0) for row in rows]
    return torch.stack([*means, vectors.mean(dim=0)])


Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

WORTH = 1.3
"""The prefix cache is used if it computes this many times fewer tokens."""
MOST_STATES = 200_000
"""States kept; when there are more, all are dropped."""
STORE_BYTES = 1 << 29
"""Bytes of keys and values held at a time; sequences that need more are split in halves."""
SAMPLE, MOST_SAMPLED = 4, 64
"""Renderings computed in float32 too if the engine uses bfloat16: of a request, and in all."""


class Engine:
    """Computes the state after each rendering and keeps it for all targets and methods.

    Args:
        model: The model; in eval mode while the engine computes.
        token_budget: Tokens of a batch, padding included; default: by chip and memory.
        share: Use the prefix cache where the backbone supports it.
        dtype: Precision of the backbone; states stay float32. With ``bfloat16`` a few renderings
            are computed in float32 too, to measure the difference.

    Attributes:
        tokens: Tokens computed so far, padding not counted.
        measured_error: Largest difference of a value from float32 so far, in the target's units; 0
            in float32, nan while nothing has been measured.
    """

    def __init__(
        self,
        model: InfluenceModel,
        *,
        token_budget: int | None = None,
        share: bool = True,
        dtype: Precision = "float32",
    ) -> None:
        self.model, self.dtype = model, dtype
        self.tokens = 0
        self.measured_error = 0.0 if dtype == "float32" else float("nan")
        self._sample: dict[bytes, Tensor] = {}
        self._budget = TokenBudget(model, token_budget)
        self._share = share
        self._places: dict[bytes, int] = {}
        self._states: list[Tensor] = []

    def states(self, renderings: Renderings) -> Tensor:
        """(R, H) states after each rendering's last visible token; each is computed once."""
        keys = _keys(renderings)
        if len(self._places) > MOST_STATES:
            self._places.clear()
            self._states.clear()
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self._places:
                first.setdefault(key, row)
        new = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        if len(new):
            states = self._read(renderings, new, self.dtype)
            for key, state in zip(first, states, strict=True):
                self._places[key] = len(self._states)
                self._states.append(state)
            if self.dtype != "float32":
                self._read_sample(renderings, first)
        return torch.stack([self._states[self._places[key]] for key in keys])

    def exact_states(self, renderings: Renderings) -> tuple[list[int], Tensor]:
        """Numbers of the renderings computed in float32 too, and their (n, H) states."""
        keys = _keys(renderings) if self._sample else []
        rows = [row for row, key in enumerate(keys) if key in self._sample]
        states = [self._sample[keys[row]] for row in rows]
        return rows, torch.stack(states) if states else torch.empty(0, self.model.backbone.width)

    def note_errors(self, errors: FloatArray) -> None:
        """Include differences from float32 in `measured_error`."""
        self.measured_error = float(np.nanmax([self.measured_error, *errors]))

    def _read_sample(self, renderings: Renderings, new: dict[bytes, int]) -> None:
        """Compute a few of the new renderings in float32, the first and the last among them."""
        names = list(new)
        places = np.linspace(0, len(names) - 1, min(SAMPLE, len(names))).astype(int).tolist()
        chosen = [names[place] for place in places[: MOST_SAMPLED - len(self._sample)]]
        if chosen:
            rows = np.array([new[name] for name in chosen])
            states = self._read(renderings, rows, "float32")
            self._sample.update(zip(chosen, states, strict=True))

    def _read(self, renderings: Renderings, rows: IntArray, dtype: Precision) -> Tensor:
        """(n, H) states of the renderings numbered ``rows``."""
        device, low = self.model.device.type, dtype == "bfloat16"
        while True:
            try:
                with inference(self.model), torch.autocast(device, torch.bfloat16, enabled=low):
                    return self._shared(renderings, rows)
            except torch.OutOfMemoryError:
                if not self._budget.halve():
                    raise

    def _shared(self, renderings: Renderings, rows: IntArray) -> Tensor:
        support = prefix_support(self.model)
        if self._share and support.works:
            sequences = _sequences(self.model, renderings, rows)
            if sequences.positions.max() < support.reach:
                inputs = torch.from_numpy(sequences.inputs).to(self.model.device)[None]
                token, neutral, added = inputs[..., 0], inputs[..., 1], inputs[..., 2:]
                vectors = self._embedded(token, added, neutral)[0]
                reader = PrefixReader(self.model, sequences, vectors)
                if sequences.lengths.sum() > WORTH * len(reader.plan.ends):
                    return self._paths(reader, sequences, vectors).cpu()
        return self._whole(renderings, rows)

    def _paths(self, reader: PrefixReader, sequences: Sequences, vectors: Tensor) -> Tensor:
        """(n, H) states of sequences, with the prefix cache."""
        stored = reader.plan.needed.sum() * prefix_support(self.model).token_bytes
        if stored <= STORE_BYTES or len(sequences.lengths) == 1:
            states = reader.read(self._budget.tokens)
            self.tokens += len(reader.plan.ends)
            return states
        states = torch.empty_like(reader.states)
        for half in np.array_split(sequences.alike(), 2):
            part = sequences.take(half)
            place = torch.from_numpy(half).to(states.device)
            states[place] = self._paths(PrefixReader(self.model, part, vectors), part, vectors)
        return states

    def _whole(self, renderings: Renderings, rows: IntArray) -> Tensor:
        """(n, H) states of whole renderings, in batches of similar length."""
        states = torch.empty(len(rows), self.model.backbone.width)
        lengths = renderings.lengths[rows]
        self.tokens += int(lengths.sum())
        for chosen in batches(lengths, self._budget.tokens):
            batch, neutral = renderings.batch(rows[chosen])
            batch, neutral = batch.to(self.model.device), neutral.to(self.model.device)
            vectors = self._embedded(batch.input_ids, batch.added_ids, neutral)
            states[chosen] = self.model.last_states(batch, vectors).float().cpu()
        return states

    def _embedded(self, ids: Tensor, added: Tensor, neutral: Tensor) -> Tensor:
        """(B, T, H) input vectors; the mean of a field where ``neutral`` names it."""
        in_units = self.model.encoder.style == "token"
        table = self.model.embeddings if in_units else self.model.body.get_input_embeddings()
        vectors: Tensor = table(ids)
        own = neutral == OWN
        if not own.all():
            vectors = torch.where(own[..., None], vectors, self._means[neutral.clamp(min=-1)])
        return vectors + self.model.embeddings.learned(added) if in_units else vectors

    @cached_property
    def _means(self) -> Tensor:
        """`mean_vectors` in float32; computed when first needed, since they use all embeddings."""
        with torch.autocast(self.model.device.type, enabled=False):
            return mean_vectors(self.model)


def _sequences(model: InfluenceModel, renderings: Renderings, rows: IntArray) -> Sequences:
    """The visible tokens of the renderings numbered ``rows``."""
    records, owner, event = renderings.records()
    place = np.full(len(renderings), -1)
    place[rows] = np.arange(len(rows))
    inside = place[owner] >= 0
    whole_events = model.backbone.kind == "encoder"
    return Sequences.of(
        records[inside], place[owner[inside]], event[inside], whole_events=whole_events
    )


def _keys(renderings: Renderings) -> list[bytes]:
    """A 16-byte hash of what the model reads of each rendering."""
    records, owner, event = renderings.records()
    table = np.ascontiguousarray(np.column_stack([event, records]))
    cuts = np.searchsorted(owner, np.arange(len(renderings) + 1))
    return [
        hashlib.blake2b(table[start:stop].tobytes(), digest_size=16).digest()
        for start, stop in pairwise(cuts.tolist())
    ]
