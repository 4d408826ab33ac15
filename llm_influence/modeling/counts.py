"""How often a history has each item: what a state cannot hold.

The attention weights of a token sum to one, so a state is made of means, and a mean does not know
whether an item occurred twice or twenty times. Where people come back to the same things, that
number says more than anything else (docs/domains/retail.md). Here it joins the item head:

    P(i)  ~  softmax(logits)_i + exp(gate . state) * count_i

which is the mean of a Dirichlet posterior: what the state expects is the prior, one event's worth
in all where the gate is 0, and what was seen is counted on top of it (as a pointer does beside a
code_names: See et al. 2017, arXiv:1704.04368; Ren et al. 2019, arXiv:1812.02646). An event counts
``worth(event) (1 + events after it)^-fading``, by the power law of forgetting (Anderson & Schooler
1991); worth and fading are learned.

What was seen travels behind the states of the examples: M slots, one an event, with the item's
code and what the event counts. So every head reads one tensor, and an event that is removed or
hidden, or whose item is another's mean, is not counted.

Sums over a history: how many events of each behaviour, and what their values add up to.

The wide part of a wide and deep network (Cheng et al. 2016, arXiv:1606.07792): a few numbers that
a linear term reads as they are, beside the network over states, which are made of means and would
have to learn to add. For every behaviour of the vocabulary there are the number of events and the sum
of their values, each over the whole history and with a half-life; of a template that says no
behaviour, value or gap, those that it leaves. They are read off the units of the tokens, so that
an event that is removed or hidden, or a field that is another's mean, adds nothing.

What heads that count are told: put behind the states of the examples.

Between the backbone and the heads there is one tensor, (..., Q): the H numbers of a state, then
what `repeats` and `totals` read off the tokens up to there. A token counts by how much of it is
there: not at all where it is hidden, belongs to the prompt or bears a mean in the place of its word;
in part along a path that leads to it; else once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.errors import TemplateError
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.time_words import GAP_EDGES
from llm_influence.rendering.token_cache import IdTokenCache

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel

NEVER = -1
"""The code of a slot whose event is not there."""
FADING = 0.1
"""Where the exponent of forgetting starts: a thousand events later one counts half."""
MOST = 60.0
"""Largest logarithm of a ratio, so that it stays a number."""


class RepeatCounts(nn.Module):
    """Adds what was seen to the logits of items.

    Args:
        width: Size H of states.
        input_width: Size of input vectors.
        slots: Most events M of a history.
    """

    def __init__(self, width: int, input_width: int, *, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.worth, self.gate = nn.Linear(input_width, 1), nn.Linear(width, 1)
        self.log_fading = nn.Parameter(torch.tensor(math.log(FADING)))
        nn.init.zeros_(self.worth.weight)
        nn.init.constant_(self.worth.bias, math.log(math.expm1(1.0)))  # softplus gives 1
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def seen(
        self, batch: EncodedBatch, places: Tensor, items: Tensor, vectors: Tensor, presence: Tensor
    ) -> Tensor:
        """(B, L, 2M) codes of the items seen up to each place, and what their events count.

        Args:
            batch: B histories of T tokens.
            places: (B, L) tokens at which something is asked.
            items: (B, T) codes of the tokens that are items and count, `NEVER` for the others.
            vectors: (B, T, H) input vectors of the tokens.
            presence: (B, T) how much of each token is there: 1, unless a path leads to it.
        """
        levelled = F.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])
        worth = F.softplus(self.worth(levelled).float())[..., 0] * presence
        slot = torch.where(items == NEVER, self.slots, batch.event_index)
        token = torch.arange(items.shape[1], device=items.device).expand_as(items)

        def by_event(values: Tensor, filler: float) -> Tensor:
            empty = values.new_full((len(values), self.slots + 1), filler)
            return empty.scatter(1, slot, values)[:, : self.slots]

        codes, at = by_event(items, NEVER), by_event(token, 0)
        there = (codes != NEVER)[:, None] & (at[:, None] <= places[..., None])  # (B, L, M)
        later = there.sum(dim=-1, keepdim=True) - there.cumsum(dim=-1)
        amounts = by_event(worth, 0.0)[:, None] * (1.0 + later) ** -self.log_fading.exp()
        shown = torch.where(there, codes[:, None], NEVER)
        return torch.cat([shown.to(amounts), amounts * there], dim=-1)

    def forward(self, logits: Tensor, states: Tensor, seen: Tensor) -> Tensor:
        """(..., I) logits of the whole catalogue with what was seen added.

        Args:
            logits: (..., I) of all items, by code.
            states: (..., H) that they were made from.
            seen: (..., 2M) as `seen` gives it.
        """
        slots, amounts = _slots(seen)
        same = slots[..., :, None] == slots[..., None, :]
        counts = (same.to(amounts) @ amounts[..., None])[..., 0]
        # an item's first slot speaks for all of its slots: no two add to one logit
        speaks = (slots != NEVER) & ~same.tril(-1).any(dim=-1)
        column, logits = slots.clamp(min=0), logits.float()
        rarity = logits.logsumexp(dim=-1, keepdim=True) - logits.gather(-1, column)
        ratio = (self.gate(states).float() + rarity).clamp(max=MOST).exp()
        gain = (counts * ratio).log1p()  # smooth at a count of 0, where gradients are asked for too
        return logits.scatter_add(-1, column, gain * speaks)


def _slots(seen: Tensor) -> tuple[Tensor, Tensor]:
    """(..., M) item codes and (..., M) amounts."""
    codes, amounts = seen.chunk(2, dim=-1)
    return codes.long(), amounts


DAY = 86_400


class AggregateFeatures(nn.Module):
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
        pieces, template = encoder.token_cache, encoder.template
        if not isinstance(pieces, IdTokenCache):
            raise TemplateError(
                "style 'text' has no units to add up",
                where="model.feedback_head.aggregate_days",
                expected="rendering.style token",
                fix="set rendering.style to token, or leave aggregate_days out",
            )
        self._other = pieces.first_item  # items, and what is not there, add nothing
        tables = {"behavior": torch.zeros(self._other + 1, len(encoder.vocabulary.behaviors))}
        tables |= {name: torch.zeros(self._other + 1) for name in ("value", "gap")}
        if "behavior" in template.fields:
            units = pieces.units_of("behavior")
            tables["behavior"][units.start : units.stop] = torch.eye(len(units))
        else:  # every item is an event of the one sort there is
            tables["behavior"] = torch.zeros(self._other + 1, 1)
            tables["behavior"][self._other] = 1
        for name, edges in (
            ("value", torch.from_numpy(encoder.vocabulary.values.edges).float()),
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
            places: (B, L) last tokens of events, or of the prompt.
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


def remembered(
    model: InfluenceModel,
    states: Tensor,
    batch: EncodedBatch,
    places: Tensor,
    vectors: Tensor | None,
    counted: Tensor | None,
) -> Tensor:
    """(B, L, Q) states and what was counted by then; see `InfluenceModel.remember`."""
    own = model.embed(batch)
    there = batch.attention_mask & (batch.event_index >= 0)
    there = there if counted is None else there & counted
    presence = there.float()
    if vectors is not None:
        presence = presence * _share(vectors, own.detach())
    parts = [states]
    if (repeats := model.item_head.repeats) is not None:
        codes = batch.input_ids - model.first_item
        items = torch.where(there & (codes >= 0), codes, NEVER)
        read = own if vectors is None else vectors
        parts.append(repeats.seen(batch, places, items, read, presence))
    if model.totals is not None:
        parts.append(model.totals(batch, places, presence))
    return torch.cat(parts, dim=-1)


def _share(vectors: Tensor, own: Tensor) -> Tensor:
    """(B, T) how much of each token's (B, T, H) own vector is in another one, from 0 on."""
    share = (vectors * own).sum(dim=-1) / own.square().sum(dim=-1).clamp(min=1e-12)
    return share.clamp(min=0)
