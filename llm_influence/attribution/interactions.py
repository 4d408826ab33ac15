"""Interactions: between pairs of events, and between every event and every later prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from llm_influence.attribution.engine import TokenBudget, batches
from llm_influence.attribution.explainer import Explainer, Histories
from llm_influence.attribution.recommended import best_unseen
from llm_influence.attribution.registry import Games, Task
from llm_influence.attribution.renderings import Removal
from llm_influence.attribution.target import TOP, BoundTarget, Target, bind, bind_items
from llm_influence.errors import ExplanationError, choices
from llm_influence.influence.influence import Influence
from llm_influence.influence.matrix import InfluenceMatrix
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.numerics import random_coalitions
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.rendering.time_words import query_codes
from llm_influence.types import BoolArray, FloatArray, History, IntArray

FOLDS = 5
PENALTIES = np.logspace(-8, 3, 12)
PAIR = 0.3
"""Scale of a pair's column beside an event's: the penalty assumes that pairs are weaker."""


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Pair interactions of one history.

    Attributes:
        user_id: The user.
        pairs: (E, E) symmetric, zero diagonal: the Banzhaf interaction index of two events, the
            mean over all sets S of the others of
            ``f(S, i, j) - f(S, i) - f(S, j) + f(S)``, in log-odds. Positive: the two together are
            worth more than the sum of each. None where pairs do not improve the fit.
        additive_r2: Held-out R2 of the additive fit to f over random sets of events.
        pair_r2: The same with pairs; nan where there are too few events or sets to try.
        evaluations: Model evaluations.
    """

    user_id: str
    pairs: FloatArray | None
    additive_r2: float
    pair_r2: float
    evaluations: int


def interactions(
    model: InfluenceModel,
    histories: Sequence[History],
    target: Target = TOP,
    *,
    removal: Removal = "drop",
    seed: int = 0,
    evaluations: int = 256,
) -> list[Interactions]:
    """Pair interactions of every history, where pairs improve the fit.

    f is evaluated on random sets of events, each event in with probability one half, and fitted by
    ridge regression with and without a term for each pair; penalties by cross-validation. The
    quadratic that fits best over all sets has the Banzhaf interaction indices for coefficients
    (Hammer and Holzman 1992; Grabisch and Roubens 1999, doi:10.1007/s001820050125).

    Args:
        model: The model.
        histories: N histories.
        target: What is explained, see `Explainer.explain`.
        removal: What "without an event" means.
        seed: Seed of random draws, mixed with the user's id.
        evaluations: Sets to evaluate for each history, at least 10.

    Raises:
        ExplanationError: An unknown target.
    """
    with inference(model):
        bound = bind(target, model, histories)
        trimmed = [model.encoder.trim(history) for history in histories]
        task = Task(model, trimmed, bound, removal, seed)
        return fit_interactions(task, [history.user_id for history in histories], evaluations)


def fit_interactions(
    games: Games, users: Sequence[str], evaluations: int = 256
) -> list[Interactions]:
    """Pair interactions of N games; ``users`` are their names."""
    masks = [
        random_coalitions(draw, players, evaluations)
        for draw, players in zip(games.generators(), games.sizes, strict=True)
    ]
    values = games.values(masks)
    rows = zip(users, masks, values, games.values.evaluations, strict=True)
    return [
        Interactions(user, *pair_effects(mask, value), int(spent))
        for user, mask, value, spent in rows
    ]


def pair_effects(masks: BoolArray, values: FloatArray) -> tuple[FloatArray | None, float, float]:
    """(n, n) interactions or None, and the held-out R2 without and with pairs.

    Args:
        masks: (M, n) distinct coalitions drawn uniformly.
        values: (M,) their values.
    """
    events = masks - 0.5
    first, second = np.triu_indices(masks.shape[1], 1)
    if len(values) < 2 * FOLDS or not len(first) or np.ptp(values) == 0:
        return None, float("nan"), float("nan")
    both = np.column_stack([events, PAIR * 2 * events[:, first] * events[:, second]])
    additive, pairs = _held_out_r2(events, values), _held_out_r2(both, values)
    if pairs <= additive:
        return None, additive, pairs
    effects = np.zeros((masks.shape[1], masks.shape[1]))
    weights = RidgeCV(PENALTIES).fit(both, values).coef_[masks.shape[1] :]
    effects[first, second] = weights * PAIR * 2
    return effects + effects.T, additive, pairs


def _held_out_r2(features: FloatArray, values: FloatArray) -> float:
    folds = KFold(FOLDS)
    predicted = cross_val_predict(RidgeCV(PENALTIES), features, values, cv=folds)
    return float(1 - ((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum())


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


@dataclass(frozen=True, slots=True, eq=False)
class AdapterEffect:
    """One history explained twice, for one target.

    Attributes:
        tuned: With the adapter.
        untuned: Without it; embeddings and heads are the trained ones.
    """

    tuned: Influence
    untuned: Influence

    @property
    def difference(self) -> FloatArray:
        """(E,) what the adapter added to the influence of each event."""
        difference: FloatArray = self.tuned.values - self.untuned.values
        return difference


@overload
def adapter_effect(
    explainer: Explainer, histories: History, target: Target = TOP
) -> AdapterEffect: ...


@overload
def adapter_effect(
    explainer: Explainer, histories: Histories, target: Target = TOP
) -> list[AdapterEffect]: ...


def adapter_effect(
    explainer: Explainer, histories: History | Histories, target: Target = TOP
) -> AdapterEffect | list[AdapterEffect]:
    """What fine-tuning changed: influence with the adapter on and with it off.

    The target is bound with the adapter on: both explain the recommendation of the tuned model.
    Takes twice the evaluations of the method.

    Args:
        explainer: Model, method and options.
        histories: One history, several, or a whole log.
        target: As in `Explainer.explain`.

    Returns:
        One record for one history, else a list in order.

    Raises:
        ExplanationError: The model has no adapter to switch off, or as in `Explainer.explain`.
    """
    model = explainer.model
    if model.adapter.saved_in != "adapter":
        raise ExplanationError(
            "the backbone itself was tuned and no untuned one was kept"
            if model.adapter.saved_in == "backbone"
            else "nothing inside the backbone was tuned",
            where=f"adapter_effect, model.adapter.kind = {model.config.adapter.kind!r}",
            expected="an adapter that can be switched off",
            fix="train another kind, such as lora",
        )
    if isinstance(histories, History):
        return adapter_effect(explainer, [histories], target)[0]
    effects = []
    for part in explainer.batches(histories):
        bound = [bind(target, model, part)]
        tuned = explainer.explain_bound(part, bound)
        with model.adapter.off():
            untuned = explainer.explain_bound(part, bound)
        pairs = zip(tuned, untuned, strict=True)
        effects += [AdapterEffect(with_it, without) for (with_it,), (without,) in pairs]
    return effects
