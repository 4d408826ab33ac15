"""All attribution methods: their classes with typed options, and the registry by name.

``Explainer(model, Shapley(evaluations=400))`` and ``Explainer(model, "shapley", evaluations=400)``
are the same.
"""

from collections.abc import Mapping

from llm_influence.attribution.ablation import CoarseToFine, LeaveOneOut, SparseSurrogate
from llm_influence.attribution.attention import (
    AttentionFlow,
    AttentionGradient,
    AttentionLast,
    AttentionRollout,
    AttentionXGradient,
)
from llm_influence.attribution.attention_value_norm import AttentionValueNorm
from llm_influence.attribution.baselines import ItemSimilarity, Popularity, RandomScores, Recency
from llm_influence.attribution.gradients import InputXGradient, Saliency, SmoothGrad
from llm_influence.attribution.group_shapley import GroupShapley
from llm_influence.attribution.integrated import (
    EventPathIntegratedGradients,
    ExpectedGradients,
    IntegratedGradients,
)
from llm_influence.attribution.registry import METHODS, Method, make
from llm_influence.attribution.shapley import ExactShapley, PermutationShapley, Shapley
from llm_influence.errors import ExplanationError, unknown

__all__ = [
    "METHODS",
    "AttentionFlow",
    "AttentionGradient",
    "AttentionLast",
    "AttentionRollout",
    "AttentionValueNorm",
    "AttentionXGradient",
    "CoarseToFine",
    "EventPathIntegratedGradients",
    "ExactShapley",
    "ExpectedGradients",
    "GroupShapley",
    "InputXGradient",
    "IntegratedGradients",
    "ItemSimilarity",
    "LeaveOneOut",
    "Method",
    "PermutationShapley",
    "Popularity",
    "RandomScores",
    "Recency",
    "Saliency",
    "Shapley",
    "SmoothGrad",
    "SparseSurrogate",
    "compared_method",
    "find_method",
    "make_method",
]


def find_method(name: str) -> type[Method]:
    """The class of a method by its name.

    Raises:
        ExplanationError: There is no such method.
    """
    if name not in METHODS:
        raise unknown(ExplanationError, "method", name, METHODS, where="method")
    return METHODS[name]


def make_method(method: str | Method, options: Mapping[str, object] | None = None) -> Method:
    """A method by its name and options; a method that has its options is returned as it is.

    Raises:
        ExplanationError: No such method or option, or options beside a method that has its own.
    """
    if isinstance(method, str):
        return make(find_method(method), options or {})
    if options:
        raise ExplanationError(
            f"options {', '.join(options)} beside {method!r}",
            where="method",
            expected=f"options inside it: {type(method).__name__}({next(iter(options))}=...)",
            fix="move the options into the method",
        )
    return method


def compared_method(other: str | Method | None, method: Method) -> Method | None:
    """The method that an explanation is compared with; None without one."""
    if other is None:
        return None
    compared = make_method(other)
    if compared.name == method.name:
        raise ExplanationError(
            f"agree_with is {method.name!r}, the method itself",
            where="Explainer",
            expected="another method to compare with",
            fix="name another method, or leave agree_with out",
        )
    return compared
