"""Aggregate features of the feedback head: sums over the events of a history."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm_influence.errors import TemplateError
from llm_influence.rendering.encoder import EncodedBatch, Encoder
from llm_influence.rendering.time_words import GAP_EDGES
from llm_influence.rendering.token_cache import IdTokenCache

DAY = 86_400


class AggregateFeatures(nn.Module):
    """Sums over a history: the number of events by behaviour and the total of their values.

    These are the wide part of a wide and deep network (Cheng et al. 2016, arXiv:1606.07792): a
    linear term reads them beside the network over states. Every sum is computed over the whole
    history and, if the template has the gap, with a half-life. A behaviour, value or gap that the
    template leaves out is left out here. A sum x becomes ``sign(x) * log(1 + |x|)``, standardised
    with mean and standard deviation over the training events (`fit`).

    Args:
        encoder: Encoder of the histories, in style ``token``.
        half_life: Half-life of the recent sums in days. The age of an event is the sum of the gaps
            of the events after it, each taken as the middle of its bucket.

    Raises:
        TemplateError: The encoder's style is ``text``.
    """

    behavior: Tensor
    value: Tensor
    gap: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: Encoder, half_life: float) -> None:
        super().__init__()
        self.half_life = half_life
        tokens, template = encoder.token_cache, encoder.template
        if not isinstance(tokens, IdTokenCache):
            raise TemplateError(
                "style 'text' has no tokens of fields to sum up",
                where="model.feedback_head.aggregate_days",
                expected="rendering.style token",
                fix="set rendering.style to token, or leave aggregate_days out",
            )
        self._other = tokens.first_item  # items and padding add nothing
        tables = {"behavior": torch.zeros(self._other + 1, len(encoder.vocabulary.behaviors))}
        tables |= {name: torch.zeros(self._other + 1) for name in ("value", "gap")}
        if "behavior" in template.fields:
            ids = tokens.ids_of("behavior")
            tables["behavior"][ids.start : ids.stop] = torch.eye(len(ids))
        else:  # all events are of one kind, and every item is one event
            tables["behavior"] = torch.zeros(self._other + 1, 1)
            tables["behavior"][self._other] = 1
        for name, edges in (
            ("value", torch.from_numpy(encoder.vocabulary.values.edges).float()),
            ("gap", torch.tensor(GAP_EDGES.tolist()) / DAY),
        ):
            if name in template.fields:
                ids = tokens.ids_of(name)
                tables[name][ids.start + 1 : ids.stop] = _middles(edges)[: len(ids) - 1]
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self._has_values = "value" in template.fields
        sums = tables["behavior"].shape[1] * (1 + self._has_values)
        self.size = sums * (1 + ("gap" in template.fields))
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("deviation", torch.ones(self.size))

    def forward(self, batch: EncodedBatch, places: Tensor, presence: Tensor) -> Tensor:
        """(B, L, F) features of the events up to each place.

        Args:
            batch: B histories of T tokens.
            places: (B, L) last tokens of events, or of the prompt.
            presence: (B, T) weight of each token, 0 for those that are not counted.
        """
        return (self._sums(batch, places, presence) - self.mean) / self.deviation

    @torch.no_grad()
    def fit(self, batch: EncodedBatch) -> None:
        """Set mean and standard deviation to those after every event of a batch."""
        raw = self._sums(batch, batch.ends[:, 1:], batch.attention_mask.float())
        events = torch.arange(raw.shape[1], device=raw.device) < batch.num_events[:, None]
        self.mean.copy_(raw[events].mean(dim=0))
        spread = raw[events].std(dim=0, correction=0)
        self.deviation.copy_(torch.where(spread > 0, spread, 1.0))

    def _sums(self, batch: EncodedBatch, places: Tensor, presence: Tensor) -> Tensor:
        """(B, L, F) signed logarithms of sums."""
        ids = torch.cat([batch.input_ids[..., None], batch.added_ids], dim=-1)
        rows = torch.where(ids < 0, self._other, ids).clamp(max=self._other)
        real = (ids >= 0) & (batch.event_index >= 0)[..., None]

        def by_event(table: Tensor) -> Tensor:
            values = table[rows].reshape(*rows.shape, -1) * real[..., None]
            tokens = values.sum(dim=2) * presence[..., None].float()
            empty = tokens.new_zeros(len(tokens), batch.ends.shape[1], tokens.shape[-1])
            slot = (batch.event_index + 1)[..., None].expand_as(tokens)
            return empty.scatter_add(1, slot, tokens)[:, 1:]

        counts = by_event(self.behavior)  # (B, E, behaviours)
        ended = batch.ends[:, None, 1:] <= places[..., None]
        exists = torch.arange(ended.shape[-1], device=places.device) < batch.num_events[:, None]
        weights = (ended & exists[:, None]).float()  # (B, L, E)
        columns = [counts]
        if self._has_values:
            columns.append(counts * by_event(self.value))
        events = torch.cat(columns, dim=-1)
        sums = [weights @ events]
        if self.size > events.shape[-1]:
            gaps = by_event(self.gap)[..., 0]
            since = gaps.cumsum(dim=-1)
            age = (weights @ gaps[..., None]) - since[:, None]
            sums.append((weights * 0.5 ** (age.clamp(min=0) / self.half_life)) @ events)
        features = torch.cat(sums, dim=-1)
        return features.sign() * features.abs().log1p()


def _middles(edges: Tensor) -> Tensor:
    """(K,) middles of K buckets given by their lower edges; for the last one its edge."""
    return torch.cat([(edges[:-1] + edges[1:]) / 2, edges[-1:]])
