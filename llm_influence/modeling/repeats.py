"""How often a history has each item: what a state cannot hold.

The attention weights of a token sum to one, so a state is made of means, and a mean does not know
whether an item occurred twice or twenty times. Where people come back to the same things, that
number says more than anything else (docs/domains/retail.md). Here it joins the item head:

    P(i)  ~  softmax(logits)_i + exp(gate . state) * count_i

which is the mean of a Dirichlet posterior: what the state expects is the prior, one event's worth
in all where the gate is 0, and what was seen is counted on top of it (as a pointer does beside a
vocabulary: See et al. 2017, arXiv:1704.04368; Ren et al. 2019, arXiv:1812.02646). An event counts
``worth(event) (1 + events after it)^-fading``, by the power law of forgetting (Anderson & Schooler
1991); worth and fading are learned.

What was seen travels behind the states of the questions: M slots, one an event, with the item's
code and what the event counts. So every head reads one tensor, and an event that is removed or
hidden, or whose item is another's mean, is not counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.rendering.batch import EncodedBatch

NEVER = -1
"""The code of a slot whose event is not there."""
FADING = 0.1
"""Where the exponent of forgetting starts: a thousand events later one counts half."""
MOST = 60.0
"""Largest logarithm of a ratio, so that it stays a number."""


class Repeats(nn.Module):
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
