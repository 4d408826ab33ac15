"""What a report says beside the explanations themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """The frame of a report. Every text may be anything: the page escapes it.

    Attributes:
        title: Heading of the page.
        model: What the model is, label to value ("Backbone" to "MiniLM, LoRA rank 16").
        protocol: How it was trained, split and measured, label to value.
        metrics: Flat records, one a row of the table, such as ``{"system": "this model",
            "split": "test", "hr10": 0.19, "ndcg10": 0.10}``. Texts and numbers; the first keys
            of the first record are the first columns.
        recommendations: By user id, the top list as (item title, probability), best first.
        rules: By user id, a line for each change that a rule made to that list.
    """

    title: str
    model: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, str | float]] = ()
    recommendations: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)
