"""All attribution methods. Importing a module of methods registers them."""

from llm_influence.attribution import (
    ablation,
    attention,
    baselines,
    gradients,
    integrated,
    shapley,
)
from llm_influence.attribution.registry import METHODS, MethodSpec
from llm_influence.errors import ExplanationError, choices

__all__ = ["FAMILIES", "METHODS", "find_method"]

FAMILIES = (ablation, shapley, integrated, gradients, attention, baselines)
"""The modules that hold methods."""


def find_method(name: str) -> MethodSpec:
    """The method of that name.

    Raises:
        ExplanationError: There is none.
    """
    if name not in METHODS:
        raise ExplanationError(
            f"unknown method {name!r}",
            where="method",
            expected=choices(METHODS, name),
            fix="choose one of them",
        )
    return METHODS[name]
