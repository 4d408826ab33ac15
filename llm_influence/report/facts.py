"""What a report says beside the explanations themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_influence.analysis.output import shown


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """The frame of a report. Every text may be anything: the page escapes it.

    Attributes:
        title: Heading of the page.
        model: What the model is, label to value ("Backbone" to "MiniLM, LoRA rank 16").
        protocol: How it was trained, split and measured, label to value.
        metrics: Flat records, one a row of the table, such as ``{"system": "this model",
            "split": "test", "hr10": 0.19, "ndcg10": 0.10}``. Texts and numbers; the first keys
            of the first record are the first columns. Records with different ``head`` make tables
            of their own.
        recommendations: By user id, the top list as (item title, probability), best first.
        rules: By user id, a line for each change that a rule made to that list.
    """

    title: str
    model: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, str | float]] = ()
    recommendations: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)


def flat_facts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level of labels and texts; what says nothing is left out."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            flat |= flat_facts(value, f"{label}: ")
        elif isinstance(value, (list, tuple)):
            flat |= {label: ", ".join(_said(each) for each in value)} if value else {}
        elif value is not None and value != "":
            flat[label] = shown(value)
    return flat


def _said(value: object) -> str:
    """An element of a list of facts."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {text}" for name, text in flat_facts(value).items())
    return shown(value)
