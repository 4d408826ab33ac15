"""Sums over a history: how many events of each behaviour, and what their values add up to.

The wide part of a wide and deep network (Cheng et al. 2016, arXiv:1606.07792): a few numbers that
a linear term reads as they are, beside the network over states, which are made of means and would
have to learn to add. For every behaviour of the lexicon there are the number of events and the sum
of their values, each over the whole history and with a half-life; of a template that says no
behaviour, value or gap, those that it leaves. They are read off the units of the tokens, so that
an event that is removed or hidden, or a field that is another's mean, adds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm_influence.errors import TemplateError
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.gaps import GAP_EDGES
from llm_influence.rendering.pieces import UnitPieces

DAY = 86_400


class Totals(nn.Module):
    """(..., F) standardised logarithms of sums over events.

    A sum x is read as ``sign(x) log(1 + |x|)``, less its mean over the events of training, by its
    standard deviation there (`fit`).

    Args:
        encoder: Renders the histories, in style ``token``.
        half_life: Of the recent sums, in days. How long ago an event was is told by the gaps of the
            events after it, each the middle of its bucket.

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
        pieces, template = encoder.pieces, encoder.template
        if not isinstance(pieces, UnitPieces):
            raise TemplateError(
                "style 'text' has no units to add up",
                where="model.feedback_head.totals_days",
                expected="rendering.style token",
                fix="set rendering.style to token, or leave totals_days out",
            )
        self._other = pieces.first_item  # items, and what is not there, add nothing
        tables = {"behavior": torch.zeros(self._other + 1, len(encoder.lexicon.behaviors))}
        tables |= {name: torch.zeros(self._other + 1) for name in ("value", "gap")}
        if "behavior" in template.fields:
            units = pieces.units_of("behavior")
            tables["behavior"][units.start : units.stop] = torch.eye(len(units))
        else:  # every item is an event of the one sort there is
            tables["behavior"] = torch.zeros(self._other + 1, 1)
            tables["behavior"][self._other] = 1
        for name, edges in (
            ("value", torch.from_numpy(encoder.lexicon.values.edges).float()),
            ("gap", torch.tensor(GAP_EDGES.tolist()) / DAY),
        ):
            if name in template.fields:
                units = pieces.units_of(name)
                tables[name][units.start + 1 : units.stop] = _middles(edges)[: len(units) - 1]
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self._valued = "value" in template.fields
        sums = tables["behavior"].shape[1] * (1 + self._valued)
        self.size = sums * (1 + ("gap" in template.fields))
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("deviation", torch.ones(self.size))

    def forward(self, batch: EncodedBatch, places: Tensor, presence: Tensor) -> Tensor:
        """(B, L, F) of the events up to each place.

        Args:
            batch: B histories of T tokens.
            places: (B, L) last tokens of events, or of the frame.
            presence: (B, T) how much of each token is there, 0 for what does not count.
        """
        return (self._sums(batch, places, presence) - self.mean) / self.deviation

    @torch.no_grad()
    def fit(self, batch: EncodedBatch) -> None:
        """Learn mean and deviation from what was summed up after every event of a batch."""
        raw = self._sums(batch, batch.ends[:, 1:], batch.attention_mask.float())
        events = torch.arange(raw.shape[1], device=raw.device) < batch.num_events[:, None]
        self.mean.copy_(raw[events].mean(dim=0))
        spread = raw[events].std(dim=0, correction=0)
        self.deviation.copy_(torch.where(spread > 0, spread, 1.0))

    def _sums(self, batch: EncodedBatch, places: Tensor, presence: Tensor) -> Tensor:
        """(B, L, F) signed logarithms of sums."""
        units = torch.cat([batch.input_ids[..., None], batch.added_ids], dim=-1)
        shown = torch.where(units < 0, self._other, units).clamp(max=self._other)
        real = (units >= 0) & (batch.event_index >= 0)[..., None]

        def by_event(table: Tensor) -> Tensor:
            found = table[shown].reshape(*shown.shape, -1) * real[..., None]
            tokens = found.sum(dim=2) * presence[..., None].float()
            empty = tokens.new_zeros(len(tokens), batch.ends.shape[1], tokens.shape[-1])
            slot = (batch.event_index + 1)[..., None].expand_as(tokens)
            return empty.scatter_add(1, slot, tokens)[:, 1:]

        counts = by_event(self.behavior)  # (B, E, behaviours)
        ended = batch.ends[:, None, 1:] <= places[..., None]
        exists = torch.arange(ended.shape[-1], device=places.device) < batch.num_events[:, None]
        weights = (ended & exists[:, None]).float()  # (B, L, E)
        columns = [counts]
        if self._valued:
            columns.append(counts * by_event(self.value))
        events = torch.cat(columns, dim=-1)
        sums = [weights @ events]
        if self.size > events.shape[-1]:
            gaps = by_event(self.gap)[..., 0]
            since = gaps.cumsum(dim=-1)
            age = (weights @ gaps[..., None]) - since[:, None]
            sums.append((weights * 0.5 ** (age.clamp(min=0) / self.half_life)) @ events)
        found = torch.cat(sums, dim=-1)
        return found.sign() * found.abs().log1p()


def _middles(edges: Tensor) -> Tensor:
    """(K,) middles of K buckets given by their lower edges; of the last one, its edge."""
    return torch.cat([(edges[:-1] + edges[1:]) / 2, edges[-1:]])
