"""The memory: an additive part of the item head that adds up what each past event leads to.

With p the probabilities of the language model, the next item is i with probability

    P(i) ~ softmax(w (log p + s sum_e h_e B[item_e, i]))_i
           + t (sum_e u_e M[item_e, i] + sum_e v_e [item_e = i])
    u_e = a g_e / (sum of all g) ** c,    v_e = b r_e / (sum of all r) ** d

The sums run over the events e of the history. M[j, i] >= 0 is the share of the events caused by
item j that are events of item i. The gates g and r depend on an event's behaviour, value, age and
distance (number of later events); h depends on the distance alone. The exponents c and d are
between 0, where every event adds its own rate, and 1, where events compete for a fixed rate.
Without the first sum this is a discrete Hawkes process whose base rate is the language model: an
event's share of P(i) is the probability that this event caused item i (Veen & Schoenberg 2008,
doi:10.1198/016214507000001148).
B is a ridge regression of what comes next on what came before (`modeling.transitions`); it acts on
log-odds. M, B and the gates are fitted on the training events (`modeling.memory_fit`). The scales
s, t and w are fitted on validation examples, so a memory is trusted as far as it predicts new
events. Items that are added after training also have a lift, a constant in log-odds.

Age and distance of an event are those in the whole history, so removing one event does not change
the part of another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.modeling.gates import (
    AGE,
    BEHAVIOR,
    DISTANCE,
    ITEM,
    BehaviorGate,
    Gate,
    Places,
    fitted_decay,
)
from llm_influence.modeling.item_links import ItemLinks
from llm_influence.rendering.encoder import NO_ITEM, RECORD

CHUNK = 32_768
"""Items whose probabilities are summed at a time; affects memory alone."""
TINY = 1e-12
MAX_LOG_RATIO = 60.0
"""Bound on the logarithm of a ratio, so that its exponential is finite."""


class Memory(nn.Module):
    """The additive part of the item head; see the module docstring for the equation.

    Args:
        transitions: M.
        associations: B.
        behaviors: Names of the behaviours.
        values: Number of value bins.

    Attributes:
        excitation: The gate g.
        revisit: The gate r.
        amounts: (2,) logarithms of a and b.
        rivalry: (2,) logits of the exponents c and d.
        decay: Distance at which h has fallen to 1/e; h = exp(-distance / decay).
        scales: (3,) the scales s, t and w.
        popularity: (I,) probabilities of the items in the training events, the base rate of the
            memory alone.
        sample: (N, 5) records of training events, which weigh the ages in `gates`.
        lift: Log-odds that items added later get, see `training.calibration.fit_lift`.
        lifts: (I,) the same by item, 0 for the items of the training events.
        to_query: Whether ages count to the query time where it is known; otherwise they count to
            the last event.
    """

    decay: Tensor
    scales: Tensor
    popularity: Tensor
    sample: Tensor
    lift: Tensor
    lifts: Tensor
    to_query: Tensor

    def __init__(
        self,
        transitions: ItemLinks,
        associations: ItemLinks,
        *,
        behaviors: tuple[str, ...],
        values: int,
        sample: int,
    ) -> None:
        super().__init__()
        self.behaviors = behaviors
        self.transitions, self.associations = transitions, associations
        self.excitation = Gate(len(behaviors), values, 0.5)
        self.revisit = Gate(len(behaviors), values, 0.5)
        self.amounts = nn.Parameter(torch.tensor([0.0, -2.0]))
        self.rivalry = nn.Parameter(torch.ones(2))
        self.register_buffer("decay", torch.ones(()))
        self.register_buffer("scales", torch.tensor([0.0, 1.0, 1.0]))
        self.register_buffer("popularity", torch.zeros(len(transitions.starts) - 1))
        self.register_buffer("sample", torch.zeros(sample, len(RECORD), dtype=torch.int64))
        self.register_buffer("lift", torch.zeros(()))
        self.register_buffer("lifts", torch.zeros(self.items))
        self.register_buffer("to_query", torch.zeros((), dtype=torch.bool))
        self.requires_grad_(requires_grad=False)  # fitted before the language model is trained

    @property
    def items(self) -> int:
        """Number of items I."""
        return len(self.popularity)

    def forward(self, logits: Tensor, records: Tensor, presence: Tensor) -> Tensor:
        """(N, I) log-probabilities of all items from the (N, I) logits of the language model.

        Args:
            logits: Logits of the whole catalogue.
            records: (N, M, 5) records of the events, item `NO_ITEM` for empty slots.
            presence: (N, M) share of each event that is present.
        """
        return self.combine(
            logits.float(),
            self.associated(records, presence, 0, self.items),
            self.excited(records, presence, 0, self.items),
            self.mass(records, presence),
        )

    def aged(self, records: Tensor, gaps: Tensor) -> Tensor:
        """(N, M, 5) records whose ages count to the query time, (N,) seconds after the last event.

        A gap of -1 is unknown and adds nothing.
        """
        later = torch.where(self.to_query, gaps.clamp(min=0), 0)
        shift = F.one_hot(torch.tensor(AGE, device=records.device), len(RECORD))
        return records + later[..., None, None] * shift

    def combine(self, logits: Tensor, associated: Tensor, excited: Tensor, mass: Tensor) -> Tensor:
        """(N, I) log-probabilities from logits and the sums of the memory, before the scales."""
        base = self.base(logits, associated).log_softmax(dim=-1)
        return add_excitation(base, self.scales[1] * excited, self.scales[1] * mass)

    def base(self, logits: Tensor, associated: Tensor, start: int = 0) -> Tensor:
        """(N, C) logits of items from ``start`` on, without transitions and revisits."""
        lifts = self.lifts[start : start + logits.shape[1]]
        return self.scales[2] * (logits + self.scales[0] * associated) + lifts

    def associated(self, records: Tensor, presence: Tensor, start: int, stop: int) -> Tensor:
        """(N, stop - start) sums ``sum_e h_e B[item_e, i]`` for a range of items."""
        weights = self.recency(records, presence)
        return self.associations.spread(records[..., ITEM], weights, start, stop)

    def recency(self, records: Tensor, presence: Tensor) -> Tensor:
        """(N, M) weights h of the events."""
        return (-records[..., DISTANCE].float() / self.decay).exp() * presence

    def rates(self, records: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M) rates u and v of the events, before the scale t.

        A hidden event (presence 0) has no rate of its own but still competes; a dropped event,
        which has no record, does not.
        """
        exists = (records[..., ITEM] != NO_ITEM).float()
        return self.rates_at(Places.of(records), exists, exists * presence)

    def rates_at(self, places: Places, exists: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M) rates u and v of the events at (N, M) places.

        Args:
            places: Places of the events between the knots of the gates.
            exists: (N, M) 1 for events, 0 for empty slots.
            presence: (N, M) share of each event that is present, 0 for empty slots.
        """
        rates = []
        for gate, amount, rival in zip(
            (self.excitation, self.revisit), self.amounts, self.rivalry, strict=True
        ):
            gates = gate(places)
            total = (gates * exists).sum(dim=-1, keepdim=True).clamp(min=TINY)
            rates.append(gates * presence * (amount - rival.sigmoid() * total.log()).exp())
        return rates[0], rates[1]

    def excited(self, records: Tensor, presence: Tensor, start: int, stop: int) -> Tensor:
        """(N, stop - start) sums of transitions and revisits for a range of items."""
        items, (causes, repeats) = records[..., ITEM], self.rates(records, presence)
        sums = self.transitions.spread(items, causes, start, stop)
        column = items - start
        inside = (column >= 0) & (column < stop - start)
        return sums.scatter_add(1, column.clamp(0, stop - start - 1), repeats * inside)

    def reader(
        self, logits: Callable[[int, int], Tensor], records: Tensor, presence: Tensor
    ) -> Callable[[int, int], Tensor]:
        """Function that gives the (N, stop - start) log-probabilities of a range of items.

        Args:
            logits: The same of the language model, as logits. It is called once for every chunk of
                the catalogue first, for the sum of all probabilities.
            records: As in `forward`.
            presence: As in `forward`.
        """

        def base(start: int, stop: int) -> Tensor:
            associated = self.associated(records, presence, start, stop)
            return self.base(logits(start, stop).float(), associated, start)

        total: list[Tensor] = []
        scale = self.scales[1]

        def scores(start: int, stop: int) -> Tensor:
            if not total:
                parts = [
                    base(place, min(place + CHUNK, self.items)).logsumexp(dim=1, keepdim=True)
                    for place in range(0, self.items, CHUNK)
                ]
                total.append(torch.cat(parts, dim=1).logsumexp(dim=1, keepdim=True))
            excited = self.excited(records, presence, start, stop)
            mass = self.mass(records, presence)
            return add_excitation(base(start, stop) - total[0], scale * excited, scale * mass)

        return scores

    def mass(self, records: Tensor, presence: Tensor) -> Tensor:
        """(N, 1) sum of `excited` over all items."""
        causes, repeats = self.rates(records, presence)
        masses = self.transitions.masses(records[..., ITEM])
        return (masses * causes + repeats).sum(dim=-1, keepdim=True)

    def alone(self, records: Tensor, presence: Tensor) -> Tensor:
        """(N, I) log-probabilities without a language model: popularity is the base rate."""
        base = self.popularity.log().expand(len(records), -1)
        excited = self.excited(records, presence, 0, self.items)
        return add_excitation(base, excited, self.mass(records, presence))

    def causes(self, records: Tensor, presence: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Exact parts of the events in the prediction of one item for each history.

        Args:
            records: (N, M, 5) records of the events.
            presence: (N, M) share of each event that is present.
            items: (N,) item codes.

        Returns:
            (N, M) scaled rates c at which the events cause the items: with P the probability of the
            item, the share of event e is ``c_e / (P (1 + mass))``, where the mass is scaled too.
            (N, M) log-odds that each event adds by association.
        """
        codes = records[..., ITEM]
        causes, repeats = self.rates(records, presence)
        causes = causes * _lookup(self.transitions, codes, items)
        causes = self.scales[1] * (causes + repeats * (codes == items[:, None]))
        weights = self.recency(records, presence)
        odds = self.scales[2] * self.scales[0] * weights * _lookup(self.associations, codes, items)
        return causes, odds

    def gates(self) -> list[BehaviorGate]:
        """Weight and half-life of each behaviour: the best exponential decay of its gate.

        ``weight * 0.5 ** (age / half-life)`` is fitted by least squares to the gates of training
        events, which have the ages and distances of the data.
        """
        with torch.no_grad():
            gate = self.excitation(Places.of(self.sample)).double().cpu().numpy()
        records = self.sample.cpu().numpy()
        fits = []
        for code in range(len(self.behaviors)):
            own = records[:, BEHAVIOR] == code
            fits.append((*fitted_decay(records[own, AGE], gate[own]), int(own.sum())))
        top = max((weight for weight, _, _ in fits), default=0.0) or 1.0
        return [
            BehaviorGate(name, weight / top, half_life, count)
            for name, (weight, half_life, count) in zip(self.behaviors, fits, strict=True)
        ]

    def extend(self, nearest: csr_array) -> None:
        """Add items that no training event contains, with the links of similar items.

        A new item leads to what its nearest known items lead to, and follows what they follow, in
        the mean. It is as popular as they are in the mean, and gets the lift.

        Args:
            nearest: (N, I) weights of the known items for each of N new ones; rows sum to 1, or to
                0 for an item without links.
        """
        self.transitions, self.associations = (
            links.extended(nearest).to(links.strengths.device)
            for links in (self.transitions, self.associations)
        )
        known = self.popularity.cpu().numpy()
        popularity = np.maximum(nearest @ known, known[known > 0].min(initial=1.0))
        new = torch.from_numpy(popularity.astype(np.float32)).to(self.popularity)
        self.popularity = torch.cat([self.popularity, new])
        self.lifts = torch.cat([self.lifts, self.lift.expand(len(new))])


def add_excitation(log_base: Tensor, excited: Tensor, mass: Tensor) -> Tensor:
    """(N, I) logarithm of ``(base + excited) / (1 + mass)``, also where the base is tiny."""
    ratio = (-log_base).clamp(max=MAX_LOG_RATIO).exp()
    return log_base + (excited * ratio).log1p() - mass.log1p()


def _lookup(links: ItemLinks, codes: Tensor, items: Tensor) -> Tensor:
    """(N, M) strengths of the links from (N, M) items to (N,) items."""
    matrix = links.matrix()
    sources, targets = codes.clamp(min=0).cpu().numpy(), items.cpu().numpy()
    found = matrix[sources.ravel(), np.repeat(targets, sources.shape[1])]
    strengths = torch.from_numpy(np.asarray(found, dtype=np.float32).reshape(sources.shape))
    return torch.where(codes == NO_ITEM, 0.0, strengths.to(codes.device))
