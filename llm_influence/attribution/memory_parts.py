"""Exact parts of a prediction: the share of the language model, and of each event by the memory.

No event is removed and nothing is estimated: the memory is a sum over the events, see
`modeling.memory`. The shares of transitions and repeats and that of the language model add up to
one. Associations act on the language model's log-odds, and are given beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llm_influence.errors import ExplanationError
from llm_influence.influence.memory_fact import MemoryParts
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.gates import ITEM
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import NO_ITEM, collate
from llm_influence.types import FloatArray, History


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
        chances = model(batch).item_logits.double().softmax(dim=1).gather(1, code[:, None])
    titles = model.catalogue.titles_by_id([*history.item_ids(), item])
    probability = chances[:, 0].cpu().numpy()
    ((shares, log_odds),) = known_parts(model, [history], code, probability)
    return MemoryParts.of(
        history.events(titles),
        (item, titles[item] or item),
        float(probability[0]),
        shares,
        log_odds,
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
