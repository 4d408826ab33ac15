"""What is compared: methods of the registry with their options, or any function of a task.

What a comparison of methods measures, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from llm_influence.attribution.methods import METHODS, find_method
from llm_influence.attribution.registry import (
    Attribution,
    Task,
    check_options,
    run_method,
)
from llm_influence.attribution.renderings import REMOVALS, Removal
from llm_influence.attribution.target import TOP, Target
from llm_influence.errors import ExplanationError, choices
from llm_influence.faithfulness.metrics import Metric, find_metrics


@dataclass(frozen=True, slots=True)
class ComparedMethod:
    """One method of a comparison.

    Attributes:
        label: Its name in the comparison.
        run: ``task -> Attribution``.
        in_target_units: Whether its scores are in the target's units; shares of one are not.
        reference: Whether it is a reference, one that knows nothing of the model.
        removals: Removals it can use; None: it removes nothing, or whatever the task says.
        options: What it was given, for the record.
    """

    label: str
    run: Callable[[Task], Attribution]
    in_target_units: bool = True
    reference: bool = False
    removals: tuple[str, ...] | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def compared_method(
    method: str, options: Mapping[str, object] | None = None, label: str | None = None
) -> ComparedMethod:
    """A method of the registry with its options, under its own name or ``label``.

    Raises:
        ExplanationError: There is no such method or option.
    """
    spec, options = find_method(method), dict(options or {})
    check_options(spec, None, options)
    return ComparedMethod(
        label or method,
        partial(run_method, spec, options=options),
        in_target_units=spec.units == "target",
        reference=spec.family == "reference",
        removals=spec.removals or None,
        options=options,
    )


def methods_compared(
    methods: Sequence[str | ComparedMethod], removals: Sequence[str]
) -> list[ComparedMethod]:
    """The methods, then every reference of the registry that is not among them.

    Raises:
        ExplanationError: A method is unknown, stands twice, or cannot use one of ``removals``.
    """
    named = [compared_method(each) if isinstance(each, str) else each for each in methods]
    labels = [each.label for each in named]
    for label in labels:
        if labels.count(label) > 1:
            raise ExplanationError(
                f"{label!r} stands twice among the methods",
                where="faithfulness",
                expected="every method once",
                fix="give one of them another label: compared_method(method, options, label)",
            )
    for each in named:
        for removal in removals:
            if each.removals is not None and removal not in each.removals:
                raise ExplanationError(
                    f"method {each.label!r} cannot use removal {removal!r}",
                    where="faithfulness",
                    expected="one removal that all compared methods can use: "
                    f"{each.label!r} knows {', '.join(each.removals)}",
                    fix="choose another removal, or leave the method out",
                )
    references = [name for name, spec in METHODS.items() if spec.family == "reference"]
    return [*named, *(compared_method(name) for name in references if name not in labels)]


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
