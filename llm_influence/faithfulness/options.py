"""What a comparison of methods measures, and how."""

from __future__ import annotations

from dataclasses import dataclass

from llm_influence.attribution.renderings import REMOVALS, Removal
from llm_influence.attribution.targets import TOP, Target
from llm_influence.errors import ExplanationError, choices
from llm_influence.faithfulness.metrics import find_metrics
from llm_influence.faithfulness.metrics.registry import Metric


@dataclass(frozen=True, slots=True)
class Options:
    """What a comparison measures, and how.

    Attributes:
        removal: What "without an event" means, the same for all methods and metrics.
        check_removal: A second removal under which everything is measured once more; None: none.
        target: What is explained.
        metrics: Names of metrics; None: all that are measured by default.
        last: Most recent events that a history is cut to, as if there had been no others; None:
            histories stay whole, and all events that fit the context are explained.
        masks: Held-out random sets a history, for LDS and infidelity.
        jitters: Draws of jittered gaps, for sensitivity.
        largest_set: Most events of a counterfactual set.
        exact_events: Longest history that is compared with exact Shapley values.
        seed: Of all draws, those of methods included.

    Raises:
        ExplanationError: A removal or metric is not known, or a number is too small.
    """

    removal: str = "drop"
    check_removal: str | None = None
    target: Target = TOP
    metrics: tuple[str, ...] | None = None
    last: int | None = None
    masks: int = 64
    jitters: int = 1
    largest_set: int = 10
    exact_events: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        find_metrics(self.metrics)
        for removal in self._named:
            if removal not in REMOVALS:
                raise ExplanationError(
                    f"unknown removal {removal!r}",
                    where="faithfulness",
                    expected=choices(REMOVALS, removal),
                    fix="choose one of them",
                )
        least = {"masks": 3, "jitters": 1, "largest_set": 1, "exact_events": 1, "last": 1}
        for name, smallest in least.items():
            found = getattr(self, name)
            if found is not None and found < smallest:
                raise ExplanationError(
                    f"{name} is {found}",
                    where="faithfulness",
                    expected=f"at least {smallest}",
                    fix="ask for more",
                )

    @property
    def measured(self) -> list[Metric]:
        """The metrics."""
        return find_metrics(self.metrics)

    @property
    def removals(self) -> list[Removal]:
        """The removals in the order in which they are measured."""
        return [known for name in self._named for known in REMOVALS if known == name]

    @property
    def _named(self) -> list[str]:
        second = [self.check_removal] if self.check_removal is not None else []
        return list(dict.fromkeys([self.removal, *second]))
