"""Explainer: histories in, `Influence` records out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.methods import find_method
from llm_influence.attribution.quality import CardOptions, quality_cards
from llm_influence.attribution.registry import (
    Attribution,
    MethodSpec,
    Task,
    check_model,
    check_options,
    check_players,
    check_precision,
    check_target,
)
from llm_influence.attribution.renderings import EVENTS, Players
from llm_influence.attribution.target import TOP, BoundTarget, Target, bind
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError
from llm_influence.influence.influence import Influence, Player, QualityCard
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.recurrent import event_gates, has_gates
from llm_influence.types import FloatArray, History


class Explainer:
    """Explains predictions of one model with one method.

    Args:
        model: The model; its mode is put back as it was after every call.
        method: A name of the registry.
        removal: ``drop``, ``mask`` or ``replace``, for methods that remove events; default: the
            method's own.
        seed: Of random draws.
        batch_size: Histories at a time; affects speed and memory alone.
        fidelity_masks: Random sets of events that the scores are tried on for the quality card
            (``lds``), a model evaluation each; 0 leaves it out.
        agree_with: Another method whose scores are compared with these for the card.
        players: Who gets a score: whole events, or `Players("fields")`, the fields of each event.
            Which methods can is in the registry; those that remove then do so by ``replace``.
        dtype: ``bfloat16``: methods that remove events read in it. A few renderings of each batch
            of histories are then read in float32 too; the card has the largest difference.
        options: The method's own options, such as ``steps`` of integrated gradients.

    Raises:
        ExplanationError: An unknown method, removal or option, or a method that is not for this
            model; the message lists the valid ones.
    """

    def __init__(
        self,
        model: InfluenceModel,
        method: str = "leave_one_out",
        *,
        removal: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
        fidelity_masks: int = 16,
        agree_with: str | None = None,
        players: Players = EVENTS,
        dtype: str = "float32",
        **options: object,
    ) -> None:
        self.model, self.spec, self.options = model, find_method(method), options
        self.removal = check_options(self.spec, removal, options)
        self.players, self.dtype = players, check_precision(self.spec, dtype)
        if not players.are_events:
            players.check_removal(removal or "replace")
            self.removal = "replace"
        self.seed, self.batch_size = seed, batch_size
        self.card = CardOptions(fidelity_masks, _other_method(agree_with, self.spec))
        for spec in self._specs:
            check_model(spec, model, options if spec is self.spec else {})
            check_players(spec, players)
        if fidelity_masks < 0:
            raise ExplanationError(
                f"fidelity_masks is {fidelity_masks}",
                where="Explainer",
                expected="a number of masks, or 0 for none",
                fix="leave it at 16",
            )

    @property
    def _specs(self) -> tuple[MethodSpec, ...]:
        """The method, and the one that it is compared with."""
        return (self.spec,) if self.card.agree_with is None else (self.spec, self.card.agree_with)

    @overload
    def explain(self, histories: History, target: Target = TOP) -> Influence: ...
    @overload
    def explain(
        self, histories: Sequence[History] | BehaviorLog, target: Target = TOP
    ) -> list[Influence]: ...
    def explain(
        self, histories: History | Sequence[History] | BehaviorLog, target: Target = TOP
    ) -> Influence | list[Influence]:
        """Influence of every event on the target.

        Args:
            histories: One history, several, or a whole log.
            target: ``"top1"`` (each history's first recommendation), an item id, a behaviour, or
                `Item`, `Behavior`, `Contrast`, `Slate`.

        Returns:
            One record for one history, else a list in order.

        Raises:
            ExplanationError: The target is not known or not one that the method can explain, or a
                history has no event.
            UnknownNameError: An item or behaviour is not known to the model.
        """
        if isinstance(histories, History):
            return next(self.stream([histories], target))
        return list(self.stream(histories, target))

    @overload
    def explain_many(self, histories: History, targets: Sequence[Target]) -> list[Influence]: ...
    @overload
    def explain_many(
        self, histories: Sequence[History] | BehaviorLog, targets: Sequence[Target]
    ) -> list[list[Influence]]: ...
    def explain_many(
        self, histories: History | Sequence[History] | BehaviorLog, targets: Sequence[Target]
    ) -> list[Influence] | list[list[Influence]]:
        """Influence of every event on each of several targets, which share what they can.

        The scores and cards are those of `explain`: evaluations are counted for each target as if it
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

    def stream(
        self, histories: Sequence[History] | BehaviorLog, target: Target = TOP
    ) -> Iterator[Influence]:
        """The same as `explain`, one record after the other, in constant memory."""
        for part in self.batches(histories):
            for (record,) in self.explain_bound(part, [bind(target, self.model, part)]):
                yield record

    def batches(self, histories: Sequence[History] | BehaviorLog) -> Iterator[list[History]]:
        """The histories, ``batch_size`` at a time.

        Raises:
            ExplanationError: A history has no event.
        """
        every = histories.at if isinstance(histories, BehaviorLog) else histories.__getitem__
        for start in range(0, len(histories), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(histories)))
            part = [every(row) for row in rows]
            _refuse_empty(part)
            yield part

    def explain_bound(
        self, whole: Sequence[History], targets: Sequence[BoundTarget]
    ) -> list[list[Influence]]:
        """Explain one batch of N histories, for whoever has to hold its targets fixed.

        Args:
            whole: Histories with at least one event each; they may be longer than the context.
            targets: Bound to these histories (`bind`): items left out of context are seen too.

        Returns:
            For each history one record a target.
        """
        for spec in self._specs:
            for target in targets:
                check_target(spec, target)
        was_training = self.model.training
        self.model.eval()
        try:
            histories = [self.model.encoder.trim(history) for history in whole]
            left_out = [len(a) - len(b) for a, b in zip(whole, histories, strict=True)]
            gates = self._gates(histories)
            tasks = self._tasks(histories, targets)
            by_target = [self._explain_task(task, left_out, gates) for task in tasks]
        finally:
            self.model.train(was_training)
        return [[records[row] for records in by_target] for row in range(len(whole))]

    def _tasks(
        self, histories: Sequence[History], targets: Sequence[BoundTarget]
    ) -> Iterator[Task]:
        """One task a target; all of them share what does not depend on the target."""
        first: Task | None = None
        for target in targets:
            if first is None:
                first = Task(
                    self.model,
                    histories,
                    target,
                    self.removal,
                    self.seed,
                    self.players,
                    reader=Engine(self.model, dtype=self.dtype),
                )
                yield first
            else:
                yield first.for_target(target)

    def _gates(self, histories: Sequence[History]) -> list[FloatArray] | list[None]:
        """Mean gate of every event, where the model is a gated recurrence."""
        if not has_gates(self.model):
            return [None] * len(histories)
        gates = event_gates(self.model, histories)
        return [gate.double().mean(dim=1).numpy() for gate in gates]

    def _explain_task(
        self, task: Task, left_out: Sequence[int], gates: Sequence[FloatArray | None]
    ) -> list[Influence]:
        attribution = self.spec.run(task, **self.options)
        cards = quality_cards(task, self.spec, attribution, left_out, self.card)
        return self._records(task, attribution, cards, gates)

    def _players(self, history: History) -> list[Player] | None:
        if self.players.are_events:
            return None
        return self.players.of(history, self.model.encoder)

    def _records(
        self,
        task: Task,
        attribution: Attribution,
        cards: Sequence[QualityCard],
        gates: Sequence[FloatArray | None],
    ) -> list[Influence]:
        titles, target = self.model.catalogue.titles_by_id, task.target
        errors, chances = attribution.standard_errors, target.probabilities(attribution.full)
        records = []
        for row, (history, card) in enumerate(zip(task.histories, cards, strict=True)):
            records.append(
                Influence(
                    user_id=history.user_id,
                    events=history.events(titles(history.item_ids())),
                    scores=attribution.scores[row],
                    prompt_score=float(attribution.prompt[row]),
                    target=target.kind,
                    target_id=target.ids[row],
                    target_name=target.names[row],
                    base_value=float(attribution.base[row]),
                    full_value=float(attribution.full[row]),
                    prediction=float(chances[row]),
                    quality=card,
                    standard_errors=None if errors is None else errors[row],
                    players=self._players(history),
                    gates=gates[row],
                )
            )
        return records


def _other_method(name: str | None, spec: MethodSpec) -> MethodSpec | None:
    if name == spec.name:
        raise ExplanationError(
            f"agree_with is {name!r}, the method itself",
            where="Explainer",
            expected="another method to compare with",
            fix="name another one, or leave agree_with out",
        )
    return None if name is None else find_method(name)


def _refuse_empty(histories: Sequence[History]) -> None:
    for history in histories:
        if not len(history):
            raise ExplanationError(
                "the history has no event",
                where=f"user {history.user_id!r}",
                expected="at least one event to give influence to",
                fix="leave the user out",
            )
