"""What fine-tuning changed: influence with the adapter on against the adapter off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import TOP, Target, bind
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import FloatArray, History


@dataclass(frozen=True, slots=True, eq=False)
class AdapterEffect:
    """One history explained twice, for one target.

    Attributes:
        tuned: With the adapter.
        untuned: Without it; unit vectors and heads are the trained ones.
    """

    tuned: Influence
    untuned: Influence

    @property
    def difference(self) -> FloatArray:
        """(E,) what the adapter added to the influence of each event."""
        difference: FloatArray = self.tuned.scores - self.untuned.scores
        return difference


@overload
def adapter_effect(
    explainer: Explainer, histories: History, target: Target = TOP
) -> AdapterEffect: ...
@overload
def adapter_effect(
    explainer: Explainer, histories: Sequence[History] | BehaviorLog, target: Target = TOP
) -> list[AdapterEffect]: ...
def adapter_effect(
    explainer: Explainer,
    histories: History | Sequence[History] | BehaviorLog,
    target: Target = TOP,
) -> AdapterEffect | list[AdapterEffect]:
    """Explain histories with the adapter on and with it off.

    The target is fixed with the adapter on: the recommendation of the tuned model is what both
    explain. Takes twice the evaluations of the method.

    Args:
        explainer: Model, method and options.
        histories: One history, several, or a whole log.
        target: As in `Explainer.explain`.

    Returns:
        One record for one history, else a list in order.

    Raises:
        ExplanationError: The model has no adapter to switch off, or as in `Explainer.explain`.
    """
    _check_adapter(explainer.model)
    if isinstance(histories, History):
        return adapter_effect(explainer, [histories], target)[0]
    return [
        effect
        for part in explainer.batches(histories)
        for effect in _compare(explainer, part, target)
    ]


def _compare(
    explainer: Explainer, histories: Sequence[History], target: Target
) -> list[AdapterEffect]:
    bound = [bind(target, explainer.model, histories)]
    tuned = explainer.explain_bound(histories, bound)
    with explainer.model.adapter.off():
        untuned = explainer.explain_bound(histories, bound)
    pairs = zip(tuned, untuned, strict=True)
    return [AdapterEffect(*with_adapter, *without) for with_adapter, without in pairs]


def _check_adapter(model: InfluenceModel) -> None:
    if model.adapter.saved_in == "adapter":
        return
    tuned = model.adapter.saved_in == "backbone"
    raise ExplanationError(
        "the backbone itself was tuned and no untuned one was kept"
        if tuned
        else "nothing inside the backbone was tuned",
        where=f"adapter_effect, model.adapter.kind = {model.config.adapter.kind!r}",
        expected="an adapter that can be switched off",
        fix="train another kind, such as lora, to see what fine-tuning changed",
    )
