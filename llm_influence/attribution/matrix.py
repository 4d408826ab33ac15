"""Influence of every event on every later prediction, in one model evaluation an event.

A state depends on its past alone. So one evaluation of a history predicts after each of its events,
and one evaluation without event i gives all later predictions without it. E evaluations give all
E (E + 1) / 2 influences; leave-one-out on every prefix would need E (E + 1) / 2 + E.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from llm_influence.attribution.engine import TokenBudget, batches
from llm_influence.attribution.target import BoundTarget, Target, best_unseen, bind, bind_items
from llm_influence.errors import ExplanationError, choices
from llm_influence.influence.influence import InfluenceMatrix
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.rendering.time_words import query_codes
from llm_influence.types import FloatArray, History, IntArray

NEXT = "next"
STATES = 64
"""States whose targets are computed at a time; affects memory and speed alone."""
_REMOVALS = ("drop", "mask")


def influence_matrix(
    model: InfluenceModel,
    history: History,
    target: Literal["next"] | Target = NEXT,
    *,
    removal: Literal["drop", "mask"] = "drop",
) -> InfluenceMatrix:
    """Leave-one-out influence of every event on the prediction after each event from it on.

    ``values[i, j] = f_j(events up to j) - f_j(the same without i)`` for i <= j.

    Args:
        model: The model; left in the mode it was in.
        history: Events that do not fit the context are left out, the oldest first.
        target: What f_j is. ``"next"``: the item of event j + 1; after the last event the first
            recommendation. Any other target of `Explainer` is explained after every event;
            ``"top1"`` and `Slate` are then those of the history up to there.
        removal: ``drop`` or ``mask``, as in `Explainer`.

    Raises:
        ExplanationError: The history has no event, or the target or removal is not known.
    """
    if not len(history) or removal not in _REMOVALS:
        raise ExplanationError(
            f"{len(history)} events, removal {removal!r}",
            where=f"influence_matrix, user {history.user_id!r}",
            expected=f"at least one event, and {choices(_REMOVALS, removal)}",
            fix="leave users without events out, and leave removal at 'drop'",
        )
    kept = model.encoder.trim(history)
    size = len(kept)
    if target == NEXT:
        bound = _next_items(model, history, kept)
    else:
        bound = bind(target, model, _prefixes(kept))
    with inference(model):
        whole = _states(model, _whole(model, kept))[0]  # after the prompt and after each event
        first, second = np.triu_indices(size)
        when, when_without = _when(kept, removal)
        later = dict(_without_one(model, kept, removal))
        parts: list[QueryState] = []
        for event in range(size):  # the last event removed: the state before it
            parts += [whole[event : event + 1], *([later[event]] if event in later else [])]
        full = _values(model, bound, whole[1:], when, np.arange(size))
        rest = _values(model, bound, QueryState.cat(parts), when_without[first, second], second)
    scores = np.full((size, size), np.nan)
    scores[first, second] = full[second] - rest
    return InfluenceMatrix(
        user_id=history.user_id,
        events=kept.events(model.catalogue.titles_by_id(kept.item_ids())),
        values=scores,
        full_values=full,
        target=bound.kind,
        target_ids=tuple(bound.ids),
        target_names=tuple(bound.names),
        removal=removal,
        evaluations=size,
    )


def _prefixes(history: History) -> list[History]:
    """The history up to each event, with the next event's time as query time."""
    moments = [*history.timestamps[1:].tolist(), history.query_time]
    return [
        replace(history.keep(slice(0, last + 1)), query_time=moment)
        for last, moment in enumerate(moments)
    ]


def _next_items(model: InfluenceModel, history: History, kept: History) -> BoundTarget:
    """The item after each kept event; after the last one the recommendation."""
    came = model.encoder.vocabulary.item_codes(kept)[1:].tolist()
    best = int(best_unseen(model, [history], 1)[0][0, 0])
    if best < 0:
        raise ExplanationError(
            "the history holds every item of the catalogue",
            where="influence_matrix, target 'next'",
            expected="an unseen item to recommend after the last event",
            fix="explain a named item instead",
        )
    return bind_items(model, [*came, best])


def _whole(model: InfluenceModel, history: History) -> EncodedBatch:
    return collate(model.encoder.encode([history])).to(model.device)


def _without_one(
    model: InfluenceModel, history: History, removal: str
) -> Iterator[tuple[int, QueryState]]:
    """Each event i but the last, with the (E - 1 - i,) states after later events."""
    size = len(history)
    kept = ~np.eye(size, dtype=bool)[: size - 1]
    if removal == "drop":
        encoded = model.encoder.encode([history.keep(mask) for mask in kept])
    else:
        encoded = model.encoder.encode([history] * len(kept))
    for part in batches(np.diff(encoded.offsets), TokenBudget(model).tokens):
        batch = collate(encoded, part).to(model.device)
        if removal == "mask":
            batch = batch.hide(torch.from_numpy(kept[part]).to(model.device))
        states = _states(model, batch)
        for row, removed in enumerate(part.tolist()):
            yield removed, states[row, removed + (1 if removal == "drop" else 2) :]


def _states(model: InfluenceModel, batch: EncodedBatch) -> QueryState:
    """(B, E + 1) states after the prompt and after each event, with the counts by then."""
    return model.query_at(batch, batch.ends)


def _when(history: History, removal: str) -> tuple[IntArray, IntArray]:
    """Gap codes (E,) of the examples after each event, and (E, E) of those without event i.

    The query time after an event is the time of the next one; after the last event, that of the
    history. Where the event just before it is dropped, the gap is measured from the one before.
    """
    size, times = len(history), history.timestamps
    moments, known = np.append(times[1:], history.query_time or 0), np.ones(size, dtype=bool)
    known[-1] = history.query_time is not None
    whole = query_codes(times, moments, known)
    without = np.tile(whole, (size, 1))
    if removal == "drop":
        known[0] = False
        without[range(size), range(size)] = query_codes(np.append(0, times[:-1]), moments, known)
    return whole, without


def _values(
    model: InfluenceModel,
    bound: BoundTarget,
    states: QueryState,
    when: IntArray,
    rows: np.ndarray,
) -> FloatArray:
    """(B,) values of the targets numbered ``rows`` (B,) at (B,) states, gaps ``when`` (B,)."""
    gaps, numbers = torch.from_numpy(when), torch.from_numpy(rows)
    parts = []
    for start in range(0, len(states), STATES):
        part = slice(start, start + STATES)
        query = model.at_time(states[part], gaps[part])
        parts.append(bound.values(model.heads(query), numbers[part]))
    return torch.cat(parts).cpu().double().numpy()
