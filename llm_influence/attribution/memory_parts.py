"""Exact parts of a prediction: the share of the language model, and of each event by the memory.

No event is removed and nothing is estimated: the memory is a sum over the events, see
`modeling.memory`. The shares of transitions and repeats and that of the language model add up to
one. Associations act on the language model's log-odds, and are given beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llm_influence.errors import ExplanationError
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.gates import ITEM
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import NO_ITEM, collate
from llm_influence.types import Event, FloatArray, History

SHOWN, LEAST_SHARE, LEAST_LOG_ODDS = 3, 0.01, 0.05
"""Largest number of events of a kind in words, and the smallest parts that are shown."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What one event adds to the prediction of an item.

    Attributes:
        event: The event.
        share: Share of the item's probability that the event causes, by a transition or a repeat.
        log_odds: Log-odds that the event adds to the language model's prediction by association.
    """

    event: Event
    share: float
    log_odds: float


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Parts of the prediction of one item after a history.

    Attributes:
        item: Item id.
        title: Its title; the id for an item without title.
        probability: Probability that the item comes next.
        language: Share of the probability that comes from the language model.
        parts: One part for each event of the history that the model reads, in time order.
    """

    item: str
    title: str
    probability: float
    language: float
    parts: tuple[MemoryPart, ...]

    def __str__(self) -> str:
        """The lines, of which those of the events are indented."""
        first, *rest = self.lines()
        return "\n".join([first, *(f"  {line}" for line in rest)])

    def lines(self) -> list[str]:
        """The parts in words: the two shares, then the largest parts of the events of each kind.

        Associations change the language model's log-odds, so they are inside its share.
        """
        lines = [
            f"{self.title} ({self.probability:.1%}): {self.language:.0%} from the language model "
            f"with associations, {1 - self.language:.0%} from transitions and revisits"
        ]
        for part in sorted(self.parts, key=lambda part: -part.share)[:SHOWN]:
            if part.share >= LEAST_SHARE:
                name, behavior = part.event.name, part.event.behavior
                again = part.event.item == self.item
                what = "come back to it" if again else f"go on to {self.title}"
                lines.append(f"{part.share:.0%}: after {behavior} of {name}, people {what}")
        lines += [
            f"{part.log_odds:+.2f} log-odds by association with {part.event.name}"
            for part in sorted(self.parts, key=lambda part: -abs(part.log_odds))[:SHOWN]
            if abs(part.log_odds) >= LEAST_LOG_ODDS
        ]
        return lines


def memory_parts(model: InfluenceModel, history: History, item: str) -> MemoryParts:
    """Split the probability of an item among the language model and the events of a history.

    Args:
        model: A model with a memory.
        history: History of any user; it is cut to the events that fit the context.
        item: Item id.

    Raises:
        ExplanationError: The model has no memory.
        UnknownNameError: The model lacks the item, or an item or behaviour of the history.
    """
    memory = model.item_head.memory
    if memory is None:
        raise ExplanationError(
            "the model has no memory",
            where="memory_parts",
            expected="a model with model.item_head.memory.enabled",
            fix="fine-tune with the memory, or explain with a method",
        )
    code = torch.from_numpy(model.catalogue.index([item]).astype("int64")).to(model.device)
    history = model.encoder.trim(history)
    batch = collate(model.encoder.encode([history])).to(model.device)
    with inference(model):
        query = model.query(batch)
        items = model.item_vectors()
        records = memory.aged(batch.records, batch.gap)
        presence = (records[..., ITEM] != NO_ITEM).float()
        logits = model.item_head.language_logits(query, items).float()
        base = memory.base(logits, memory.associated(records, presence, 0, memory.items))
        shares, odds = memory.shares(
            base.log_softmax(dim=1).gather(1, code[:, None])[:, 0], records, presence, code
        )
        whole = model.item_head(query, items).log_softmax(dim=1)[0, code[0]]
    titles = dict(zip(model.catalogue.ids.to_pylist(), model.catalogue.titles, strict=True))
    parts = [
        MemoryPart(event, share, odd)
        for event, share, odd in zip(
            history.events(titles), shares[0].tolist(), odds[0].tolist(), strict=True
        )
    ]
    return MemoryParts(
        item=item,
        title=titles[item] or item,
        probability=float(whole.exp()),
        language=float(1 - shares.sum()),
        parts=tuple(parts),
    )


def known_parts(
    model: InfluenceModel,
    histories: Sequence[History],
    codes: torch.Tensor,
    probabilities: FloatArray,
) -> list[tuple[FloatArray, FloatArray]]:
    """Parts of the events in predictions whose probability is known; no model evaluation.

    With ``P(i) = (base_i + sum_e c_e) / (1 + mass)`` (`modeling.memory`), the share of event e is
    ``c_e / (P(i) (1 + mass))``. It is as exact as the probability.

    Args:
        model: A model with a memory.
        histories: N histories that fit the context.
        codes: (N,) item codes.
        probabilities: (N,) probabilities of the items.

    Returns:
        For each history (E,) shares and (E,) log-odds, as in `MemoryPart`.
    """
    memory = model.item_head.memory
    if memory is None:
        return []
    batch = collate(model.encoder.encode(histories)).to(model.device)
    with inference(model):
        records = memory.aged(batch.records, batch.gap)
        presence = (records[..., ITEM] != NO_ITEM).float()
        causes, odds = memory.causes(records, presence, codes.to(model.device))
        mass = 1 + memory.scales[1] * memory.mass(records, presence)
    whole = probabilities[:, None] * mass.cpu().double().numpy()
    shares = causes.cpu().double().numpy() / np.maximum(whole, np.finfo(np.float64).tiny)
    # rounding of the probability must not make the parts more than the whole
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    return [
        (share[: len(history)], odd[: len(history)])
        for history, share, odd in zip(histories, shares, odds.cpu().double().numpy(), strict=True)
    ]
