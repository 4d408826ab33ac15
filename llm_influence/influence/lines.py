"""Lines of an explanation: one for each event, and one for the events that were scored together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_influence.influence.facts import tidy, what
from llm_influence.types import Event, FloatArray

_LONGEST_NAME = 48


class Line(NamedTuple):
    """A label and its score.

    Attributes:
        label: The event, or the number of events that were scored together.
        value: Score of the event, or sum of the scores of all these events.
    """

    label: str
    value: float


def lines(
    events: Sequence[Event],
    values: FloatArray,
    errors: FloatArray | None,
    block: Sequence[int],
) -> list[Line]:
    """The lines of an explanation, oldest event first; the block, if there is one, comes first.

    Args:
        events: The E events.
        values: (E,) scores.
        errors: (E,) standard errors; None without any.
        block: Places of the events that were scored together.
    """
    inside = set(block)
    alone = [
        Line(event_label(event), float(values[place]))
        for place, event in enumerate(events)
        if place not in inside
    ]
    if not block:
        return alone
    places = list(block)
    error = 0.0 if errors is None else float(errors[places].sum())
    return [Line(block_label(block, error), float(values[places].sum())), *alone]


def block_label(block: Sequence[int], error: float) -> str:
    """The events that were scored together: ``38 older events together (± 0.1)``.

    Args:
        block: Their places; "older" if no other event is before one of them.
        error: Standard error of their sum; half of the 95% interval is written.
    """
    older = list(block) == list(range(len(block)))
    half = f" (± {1.96 * error:.2g})" if error else ""
    return f"{len(block)} {'older' if older else 'other'} events together{half}"


def event_label(event: Event) -> str:
    """An event as a label: ``Alien (1979) · rate 4``."""
    return f"{short(event.name)} · {what(event)}"


def short(name: str) -> str:
    """A name on one line of at most 48 characters."""
    name = tidy(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip() + "…"


def strongest(lines_: Sequence[Line]) -> list[Line]:
    """The lines, largest absolute value first; ties keep the more recent first."""
    sizes = np.abs([line.value for line in lines_])
    return [lines_[place] for place in np.lexsort((-np.arange(len(lines_)), -sizes))]
