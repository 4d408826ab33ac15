"""What the removal of one event changes on a list of recommendations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_influence.influence.facts import tidy, what
from llm_influence.types import Event


@dataclass(frozen=True, slots=True)
class SlateChange:
    """The list of recommendations without one event, beside the list with all events.

    Attributes:
        event: Place of the removed event among the events that the model reads.
        size: Number of items on the list.
        moved: Items that stay on the list, at another place.
        leaves: Items that leave the list, best first; titles, or ids without a title.
        enters: Items that take their places, best first.
    """

    event: int
    size: int
    moved: int
    leaves: tuple[str, ...]
    enters: tuple[str, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> SlateChange:
        """The change of plain data, as in a table or in JSON."""
        names = {name: tuple(fields[name]) for name in ("leaves", "enters")}
        return cls(**{**fields, **names})

    @property
    def stays(self) -> int:
        """Number of items on both lists."""
        return self.size - len(self.leaves)

    def lines(self, events: Sequence[Event]) -> list[str]:
        """The removed event, what stays, and each item that leaves or enters, for a report."""
        if not self.leaves and not self.moved:
            return ["no single event changes the list"]
        event = events[self.event]
        return [
            f"without {tidy(event.name)} ({what(event)}), the event that changes it most: "
            f"{self.stays} of {self.size} items stay, {self.moved} of them at another place",
            *(f"leaves: {tidy(name)}" for name in self.leaves),
            *(f"enters: {tidy(name)}" for name in self.enters),
        ]


def largest(changes: Sequence[SlateChange]) -> SlateChange:
    """The change with the most items that leave, then that move; of equal ones the most recent."""
    return max(changes, key=lambda change: (len(change.leaves), change.moved, change.event))
