"""What is compared: methods of the registry with their options, or any function of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from llm_influence.attribution.explainer import METHODS
from llm_influence.attribution.registry import check_options, find_method, run_method
from llm_influence.attribution.task import Attribution, Task
from llm_influence.errors import ExplanationError


@dataclass(frozen=True, slots=True)
class Contender:
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


def contender(
    method: str, options: Mapping[str, object] | None = None, label: str | None = None
) -> Contender:
    """A method of the registry with its options, under its own name or ``label``.

    Raises:
        ExplanationError: There is no such method or option.
    """
    spec, options = find_method(method), dict(options or {})
    check_options(spec, None, options)
    return Contender(
        label or method,
        partial(run_method, spec, options=options),
        in_target_units=spec.units == "target",
        reference=spec.family == "reference",
        removals=spec.removals or None,
        options=options,
    )


def line_up(methods: Sequence[str | Contender], removals: Sequence[str]) -> list[Contender]:
    """The methods, then every reference of the registry that is not among them.

    Raises:
        ExplanationError: A method is unknown, stands twice, or cannot use one of ``removals``.
    """
    named = [contender(each) if isinstance(each, str) else each for each in methods]
    labels = [each.label for each in named]
    for label in labels:
        if labels.count(label) > 1:
            raise ExplanationError(
                f"{label!r} stands twice among the methods",
                where="faithfulness",
                expected="every method once",
                fix="give one of them another label: contender(method, options, label)",
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
    return [*named, *(contender(name) for name in references if name not in labels)]
