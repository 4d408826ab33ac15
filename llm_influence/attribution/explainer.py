"""Explainer: histories in, `Influence` records out, each with its quality card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import overload

import numpy as np

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.ensembles import weighted_sum
from llm_influence.attribution.memory_parts import known_parts
from llm_influence.attribution.methods import Method, compared_method, make_method
from llm_influence.attribution.registry import (
    Attribution,
    Task,
    check_model,
    check_players,
    check_precision,
    check_removal,
    check_target,
    user_generator,
)
from llm_influence.attribution.renderings import EVENTS, Players
from llm_influence.attribution.slate_changes import with_slate_changes
from llm_influence.attribution.target import TOP, BoundTarget, Target, bind, with_ranks
from llm_influence.attribution.unread import unread_fields
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError, check_type, out_of_range
from llm_influence.influence.facts import QualityCard
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import Ensemble, InfluenceModel
from llm_influence.numerics import proper_coalitions, spearman
from llm_influence.types import BoolArray, FloatArray, History, IntArray

_STREAM = 1
"""Separates these draws from those of a method with the same seed and user."""


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What is measured for the card.

    Attributes:
        fidelity_masks: Random sets of events on which the scores are tested; 0: none.
        agree_with: Another method to compare the scores with; None: no comparison.
    """

    fidelity_masks: int
    agree_with: Method | None


def quality_cards(
    task: Task,
    method: Method,
    attribution: Attribution,
    left_out: Sequence[int],
    options: CardOptions,
) -> list[QualityCard]:
    """The cards of the N explanations of one task.

    Costs up to ``fidelity_masks`` model evaluations a history, and those of the other method.
    Subsets that the method has already evaluated are not evaluated again.
    """
    gaps, errors = attribution.completeness_gaps(), attribution.standard_errors
    lds, tried, evaluations = _linear_fidelity(task, attribution, options.fidelity_masks)
    agreement, more_evaluations = _agreement(task, attribution, options.agree_with)
    return [
        QualityCard(
            method=method.name,
            removal=task.removal if method.removals else "none",
            units=method.units,
            completeness_gap=float(gaps[row]),
            evaluations=int(attribution.evaluations[row]),
            seed=task.seed,
            left_out=int(left_out[row]),
            largest_standard_error=float("nan") if errors is None else float(np.max(errors[row])),
            converged=None if attribution.converged is None else bool(attribution.converged[row]),
            lds=lds[row],
            fidelity_masks=tried[row],
            agreement=agreement[row],
            agreement_with=options.agree_with.name if options.agree_with else "",
            card_evaluations=int(evaluations[row] + more_evaluations[row]),
            bfloat16_error=task.values.bfloat16_error,
        )
        for row in range(len(gaps))
    ]


def spare_masks(user_id: str, players: int, count: int, seed: int) -> BoolArray:
    """(M, P) random sets of players, each kept with probability 1/2 (`proper_coalitions`)."""
    return proper_coalitions(user_generator(seed, user_id, _STREAM), players, count)


def _linear_fidelity(
    task: Task, attribution: Attribution, count: int
) -> tuple[list[float], list[int], IntArray]:
    """LDS, the number of sets it is based on, and (N,) evaluations, of N histories.

    ``LDS = Spearman over S of f(x_S) and the sum of the scores of S`` (Park et al. 2023,
    arXiv:2303.14186, where S are sets of training examples).
    """
    if not count:
        size = len(task.histories)
        return [float("nan")] * size, [0] * size, np.zeros_like(attribution.evaluations)
    task.values.restart()
    masks = [
        spare_masks(history.user_id, size, count, task.seed)
        for history, size in zip(task.histories, task.sizes, strict=True)
    ]
    values = task.values(masks)
    sums = [mask @ scores for mask, scores in zip(masks, attribution.scores, strict=True)]
    lds = [spearman(value, total) for value, total in zip(values, sums, strict=True)]
    return lds, [len(mask) for mask in masks], task.values.evaluations


def _agreement(
    task: Task, attribution: Attribution, other: Method | None
) -> tuple[list[float], IntArray]:
    """Spearman of the scores with another method's, and (N,) evaluations of the other method."""
    if other is None:
        return [float("nan")] * len(attribution.scores), np.zeros_like(attribution.evaluations)
    if other.removals and task.removal not in other.removals:
        task = task.like(removal=other.removals[0])
    task.values.restart()
    second = other.run(task)
    pairs = zip(attribution.scores, second.scores, strict=True)
    return [spearman(ours, theirs) for ours, theirs in pairs], second.evaluations


Histories = Sequence[History] | BehaviorLog


class Explainer:
    """Explains predictions of one model with one method.

    Args:
        model: The model, or an `Ensemble`: the weighted sum of its members' values is explained.
            After every call it is in the mode it was in before.
        method: A name of the registry, or a method with its options: ``Shapley(evaluations=400)``.
        removal: ``drop``, ``mask`` or ``replace``, for methods that remove events; default: the
            method's own.
        seed: Seed of random draws.
        batch_size: Histories at a time; affects speed and memory alone.
        fidelity_masks: Random sets of events on which the scores are tested for the quality card
            (``lds``), a model evaluation each; 0: none.
        agree_with: Another method, whose scores are compared with these for the card.
        players: What gets a score: whole events, or `Players("fields")`, the fields of each event.
            The registry says which methods can do that; those that remove then use ``replace``.
        dtype: ``bfloat16``: methods that remove events compute in it. A few renderings of each
            batch are then computed in float32 too; the card has the largest difference.
        options: Options of a method that is given by name, such as ``evaluations``.

    Attributes:
        method: The method with its options.

    Raises:
        ExplanationError: An unknown method, removal or option, or a method that cannot explain this
            model; the message lists the valid ones.
    """

    def __init__(
        self,
        model: InfluenceModel,
        method: str | Method = "group_shapley",
        *,
        removal: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
        fidelity_masks: int = 16,
        agree_with: str | Method | None = None,
        players: Players = EVENTS,
        dtype: str = "float32",
        **options: object,
    ) -> None:
        if fidelity_masks < 0:
            expected = "a number of masks, or 0 for none"
            raise out_of_range(
                ExplanationError, "fidelity_masks", fidelity_masks, expected=expected
            )
        self.model, self.method = model, make_method(method, options)
        self.removal = check_removal(self.method, removal)
        self.players, self.dtype = players, check_precision(self.method, dtype)
        if not players.are_events:
            players.check_removal(removal or "replace")
            self.removal = "replace"
        self.seed, self.batch_size = seed, batch_size
        self.card = CardOptions(fidelity_masks, compared_method(agree_with, self.method))
        for used in self._methods:
            for member in model.models if isinstance(model, Ensemble) else [model]:
                check_model(used, member)
            check_players(used, players)

    @property
    def _methods(self) -> tuple[Method, ...]:
        """The method, and the one that it is compared with."""
        return tuple(m for m in (self.method, self.card.agree_with) if m is not None)

    @overload
    def explain(self, histories: History, target: Target = TOP) -> Influence: ...
    @overload
    def explain(self, histories: Histories, target: Target = TOP) -> list[Influence]: ...
    def explain(
        self, histories: History | Histories, target: Target = TOP
    ) -> Influence | list[Influence]:
        """Influence of every event on the target.

        Args:
            histories: One history, several, or a whole log.
            target: ``"top1"`` (each history's first recommendation), an item id, a behaviour, or
                `Item`, `Behavior`, `Contrast`, `Slate`, `Feedback`.

        Returns:
            One record for one history, else a list in order.

        Raises:
            ExplanationError: The target is unknown or the method cannot explain it, or a history
                has no event.
            UnknownNameError: An item or behaviour of a history is unknown to the model.
        """
        if isinstance(histories, History):
            return next(self.stream([histories], target))
        return list(self.stream(histories, target))

    @overload
    def explain_many(self, histories: History, targets: Sequence[Target]) -> list[Influence]: ...
    @overload
    def explain_many(
        self, histories: Histories, targets: Sequence[Target]
    ) -> list[list[Influence]]: ...
    def explain_many(
        self, histories: History | Histories, targets: Sequence[Target]
    ) -> list[Influence] | list[list[Influence]]:
        """Influence of every event on each of several targets; renderings and states are shared.

        Scores and cards equal those of `explain`: evaluations are counted for each target as if it
        had been alone.

        Args:
            histories: One history, several, or a whole log.
            targets: As in `explain`.

        Returns:
            One record a target for one history, else such a list for each history.

        Raises:
            ExplanationError, UnknownNameError: As in `explain`.
        """
        if isinstance(histories, History):
            return self.explain_many([histories], targets)[0]
        return [
            records
            for part in self.batches(histories)
            for records in self.explain_bound(part, [bind(t, self.model, part) for t in targets])
        ]

    def stream(self, histories: Histories, target: Target = TOP) -> Iterator[Influence]:
        """The records of `explain`, one after the other, in constant memory."""
        for part in self.batches(histories):
            for (record,) in self.explain_bound(part, [bind(target, self.model, part)]):
                yield record

    def batches(self, histories: Histories) -> Iterator[list[History]]:
        """The histories, ``batch_size`` at a time.

        Raises:
            ExplanationError: A history has no event.
        """
        expected = "a History, a list of them or a BehaviorLog"
        kinds = (BehaviorLog, list, tuple, Sequence)
        check_type(ExplanationError, "histories", histories, kinds, expected=expected)
        get = histories.at if isinstance(histories, BehaviorLog) else histories.__getitem__
        for start in range(0, len(histories), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(histories)))
            part = [get(row) for row in rows]
            for history in part:
                check_type(ExplanationError, "history", history, History, expected=expected)
                if not len(history):
                    raise ExplanationError(
                        "the history has no event",
                        where=f"user {history.user_id!r}",
                        expected="at least one event",
                        fix="leave the user out",
                    )
            yield part

    def explain_bound(
        self, whole: Sequence[History], targets: Sequence[BoundTarget]
    ) -> list[list[Influence]]:
        """Explain one batch of N histories for targets that are already bound.

        Args:
            whole: Histories with at least one event each; they may be longer than the context.
            targets: Bound to these histories (`bind`): items left out of context are seen too.

        Returns:
            For each history one record a target.
        """
        for used in self._methods:
            for target in targets:
                check_target(used, target)
        targets = with_ranks(targets, self.model, whole)
        if isinstance(self.model, Ensemble):
            records = self._explain_members(self.model, whole, targets)
        else:
            records = self._explain_model(whole, targets)
        return with_slate_changes(self.model, whole, targets, records)

    def _explain_model(
        self, whole: Sequence[History], targets: Sequence[BoundTarget]
    ) -> list[list[Influence]]:
        """The explanations of one model."""
        was_training = self.model.training
        self.model.eval()
        try:
            histories = [self.model.encoder.trim(history) for history in whole]
            left_out = [len(a) - len(b) for a, b in zip(whole, histories, strict=True)]
            gates = self._gates(histories)
            by_target = []
            task: Task | None = None
            for target in targets:
                task = self._task(histories, target) if task is None else task.like(target)
                attribution = self.method.run(task)
                cards = quality_cards(task, self.method, attribution, left_out, self.card)
                by_target.append(self._records(task, attribution, cards, gates))
        finally:
            self.model.train(was_training)
        return [[records[row] for records in by_target] for row in range(len(whole))]

    def _explain_members(
        self, ensemble: Ensemble, whole: Sequence[History], targets: Sequence[BoundTarget]
    ) -> list[list[Influence]]:
        """The weighted sum of the members' explanations, see `weighted_sum`."""
        of_members = []
        for member in ensemble.models:
            explainer = copy(self)
            explainer.model = member
            of_members.append(explainer._explain_model(whole, targets))
        return [
            [
                weighted_sum(records, ensemble.weights, target)
                for *records, target in zip(*of_history, targets, strict=True)
            ]
            for of_history in zip(*of_members, strict=True)
        ]

    def _task(self, histories: Sequence[History], target: BoundTarget) -> Task:
        engine = Engine(self.model, dtype=self.dtype)
        return Task(
            self.model, histories, target, self.removal, self.seed, self.players, engine=engine
        )

    def _gates(self, histories: Sequence[History]) -> list[FloatArray] | list[None]:
        """Mean gate of every event, if the model is a gated recurrence."""
        if not self.model.has_gates:
            return [None] * len(histories)
        return [self.model.gates(h).double().mean(dim=1).numpy() for h in histories]

    def _records(
        self,
        task: Task,
        attribution: Attribution,
        cards: Sequence[QualityCard],
        gates: Sequence[FloatArray | None],
    ) -> list[Influence]:
        titles, target, players = self.model.catalogue.titles_by_id, task.target, self.players
        errors, chances = attribution.standard_errors, target.probabilities(attribution.full)
        remembered: Sequence[tuple[FloatArray | None, FloatArray | None]] = ()
        if target.kind == "item":
            remembered = known_parts(self.model, task.histories, target.codes, chances)
        remembered = remembered or [(None, None)] * len(task.histories)
        blocks = attribution.blocks or [()] * len(task.histories)
        places = target.places or [None] * len(task.histories)
        return [
            Influence(
                user_id=history.user_id,
                events=history.events(titles(history.item_ids())),
                values=attribution.scores[row],
                prompt_score=float(attribution.prompt[row]),
                target=target.kind,
                target_id=target.ids[row],
                target_name=target.names[row],
                base_value=float(attribution.base[row]),
                full_value=float(attribution.full[row]),
                prediction=float(chances[row]),
                quality=card,
                standard_errors=None if errors is None else errors[row],
                players=None if players.are_events else players.of(history, self.model.encoder),
                gates=gates[row],
                memory_shares=remembered[row][0],
                memory_log_odds=remembered[row][1],
                block=blocks[row],
                target_rank=(places[row] or (None, None))[0],
                candidates=(places[row] or (None, None))[1],
                unread=unread_fields(self.model, target.kind),
            )
            for row, (history, card) in enumerate(zip(task.histories, cards, strict=True))
        ]
