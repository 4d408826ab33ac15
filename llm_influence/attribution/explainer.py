"""Explainer: histories in, `Influence` records out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from llm_influence.attribution import (
    attention,
    coarse,
    gradient,
    perturbation,
    references,
    shapley,
    surrogate,
)
from llm_influence.attribution.registry import METHODS, check_options, find_method
from llm_influence.attribution.targets import TOP, BoundTarget, Target, bind
from llm_influence.attribution.task import Attribution, Task
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError
from llm_influence.influence.record import Influence, QualityCard
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History

__all__ = ["METHODS", "Explainer"]

FAMILIES = (attention, gradient, perturbation, shapley, coarse, surrogate, references)
"""Importing a family registers its methods."""


class Explainer:
    """Explains predictions of one model with one method.

    Args:
        model: The model; its mode is put back as it was after every call.
        method: A name of the registry.
        removal: ``drop`` or ``mask``, for methods that remove events; default: the method's own.
        seed: Of random draws.
        batch_size: Histories at a time; affects speed and memory alone.
        options: The method's own options, such as ``steps`` of integrated gradients.

    Raises:
        ExplanationError: An unknown method, removal or option; the message lists the valid ones.
    """

    def __init__(
        self,
        model: InfluenceModel,
        method: str = "leave_one_out",
        *,
        removal: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **options: object,
    ) -> None:
        self.model, self.spec, self.options = model, find_method(method), options
        self.removal = check_options(self.spec, removal, options)
        self.seed, self.batch_size = seed, batch_size

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
                `Item`, `Behavior`, `Contrast`.

        Returns:
            One record for one history, else a list in order.

        Raises:
            ExplanationError: The target is not known, or a history has no event.
            UnknownNameError: An item or behaviour is not known to the model.
        """
        if isinstance(histories, History):
            return next(self.stream([histories], target))
        return list(self.stream(histories, target))

    def stream(
        self, histories: Sequence[History] | BehaviorLog, target: Target = TOP
    ) -> Iterator[Influence]:
        """The same as `explain`, one record after the other, in constant memory."""
        every = histories.at if isinstance(histories, BehaviorLog) else histories.__getitem__
        for start in range(0, len(histories), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(histories)))
            yield from self._explain_batch([every(row) for row in rows], target)

    def _explain_batch(self, whole: Sequence[History], target: Target) -> list[Influence]:
        _refuse_empty(whole)
        was_training = self.model.training
        self.model.eval()
        try:
            histories = [self.model.encoder.trim(history) for history in whole]
            bound = bind(target, self.model, whole)  # items left out of context are seen too
            task = Task(self.model, histories, bound, self.removal, self.seed)
            attribution = self.spec.run(task, **self.options)
        finally:
            self.model.train(was_training)
        left_out = [len(a) - len(b) for a, b in zip(whole, histories, strict=True)]
        return self._records(histories, bound, attribution, left_out)

    def _records(
        self,
        histories: Sequence[History],
        target: BoundTarget,
        attribution: Attribution,
        left_out: Sequence[int],
    ) -> list[Influence]:
        titles = self.model.catalogue.titles_by_id
        gaps = attribution.completeness_gaps()
        records = []
        for row, history in enumerate(histories):
            full = float(attribution.full[row])
            records.append(
                Influence(
                    user_id=history.user_id,
                    events=history.events(titles(history.item_ids())),
                    scores=attribution.scores[row],
                    frame_score=float(attribution.frame[row]),
                    target=target.kind,
                    target_id=target.ids[row],
                    target_name=target.names[row],
                    base_value=float(attribution.base[row]),
                    full_value=full,
                    prediction=float(1 / (1 + np.exp(-full))),
                    quality=QualityCard(
                        method=self.spec.name,
                        removal=self.removal if self.spec.removals else "none",
                        units=self.spec.units,
                        completeness_gap=float(gaps[row]),
                        passes=int(attribution.passes[row]),
                        seed=self.seed,
                        left_out=int(left_out[row]),
                    ),
                )
            )
        return records


def _refuse_empty(histories: Sequence[History]) -> None:
    for history in histories:
        if not len(history):
            raise ExplanationError(
                "the history has no event",
                where=f"user {history.user_id!r}",
                expected="at least one event to give influence to",
                fix="leave the user out",
            )
