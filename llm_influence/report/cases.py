"""Explained predictions as the page shows them: one case for each user and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from llm_influence.influence.facts import column
from llm_influence.influence.influence import Influence, from_arrow
from llm_influence.influence.table import explanation_starts
from llm_influence.rendering.time_words import gap_codes, gap_words

# Even a history that only supports keeps a little room left of zero, so that zero is visible.
_LEAST_SIDE = 0.08
# Below this a score has no length: dividing by it would overflow.
_NOTHING = 1e-200
_MOST_NAMED = 5

Recommendations = Mapping[str, Sequence[tuple[str, float]]]


class Bar(NamedTuple):
    """One bar on its track, in percent of the track's width.

    Attributes:
        left: Where it begins.
        width: How long it is.
        kind: ``for``, ``against`` or ``share``; names the color.
    """

    left: float
    width: float
    kind: str


class Scale(NamedTuple):
    """A track with a zero on it, as much room on each side as the scores need.

    Attributes:
        zero: Place of zero, in percent of the track.
        unit: Percent of the track for a score of 1, the same on both sides.
        share: Whether scores are shares, which have no side.
    """

    zero: float
    unit: float
    share: bool = False

    @classmethod
    def fit(cls, scores: ArrayLike, *, share: bool = False) -> Scale:
        """The scale on which the longest bar of ``scores`` reaches the end of its side."""
        values = np.asarray(scores, dtype=np.float64)
        up, down = max(values.max(initial=0.0), 0.0), max(-values.min(initial=0.0), 0.0)
        if up + down < _NOTHING:
            return cls(zero=0.0 if share else 50.0, unit=0.0, share=share)
        zero = 0.0 if share and not down else down / (up + down)
        if not share:
            zero = min(max(zero, _LEAST_SIDE), 1 - _LEAST_SIDE)
        room = [zero / down] if down else []
        room += [(1 - zero) / up] if up else []
        return cls(zero=100 * zero, unit=100 * min(room), share=share)

    def bar(self, score: float) -> Bar:
        """The bar of a score."""
        width = abs(score) * self.unit
        kind = "share" if self.share else "against" if score < 0 else "for"
        return Bar(self.zero - width if score < 0 else self.zero, width, kind)


class Method(NamedTuple):
    """The explanation of a case by one method, with its scale and its (E,) scores as text."""

    influence: Influence
    scale: Scale
    written: list[str]

    @classmethod
    def of(cls, influence: Influence) -> Method:
        """Lay out an explanation of events."""
        share = influence.quality.units == "share"
        scale = Scale.fit(influence.values, share=share)
        return cls(influence, scale, column(influence.values, share=share))

    def bar(self, place: int) -> Bar:
        """The bar of an event."""
        return self.scale.bar(self.influence.values[place])

    def strongest(self, side: int) -> list[int]:
        """Places of the strongest events with a positive (1) or a negative (-1) score."""
        scores = side * self.influence.values
        order = np.lexsort((-np.arange(len(scores)), -scores))[:_MOST_NAMED]
        return [int(place) for place in order if scores[place] > 0]


class Case(NamedTuple):
    """One explained prediction of one user.

    Attributes:
        methods: Explanations by method; the first is drawn large and its sentence is shown.
        name: The target for people.
        on_list: Whether the target is on the list of recommendations.
        recommended: The user's top list as (title, probability); empty if it was not given.
        gaps: (E,) time since the event before, in words.
    """

    methods: list[Method]
    name: str
    on_list: bool
    recommended: Sequence[tuple[str, float]]
    gaps: list[str]

    @property
    def first(self) -> Influence:
        """The explanation by the first method."""
        return self.methods[0].influence

    def records(self) -> list[dict[str, Any]]:
        """One record an event: what it was, and its score by each method, to six digits."""
        names = [method.influence.quality.method for method in self.methods]
        columns = {  # one method may occur twice, with two removals
            f"score_{name}" if names.count(name) == 1 else f"score_{name}_{place}": method
            for place, (name, method) in enumerate(zip(names, self.methods, strict=True), start=1)
        }
        gates = self.first.gates
        return [
            {
                "position": place,
                "timestamp": event.timestamp,
                "behavior": event.behavior,
                "item": event.item,
                "title": event.title,
                "value": event.value,
                **({} if gates is None else {"gate": _six(gates[place])}),
                **{name: _six(m.influence.values[place]) for name, m in columns.items()},
            }
            for place, event in enumerate(self.first.events)
        ]


def cases(table: pa.Table, recommendations: Recommendations, users: int) -> list[Case]:
    """Lay out the explanations of the first users of a table.

    Explanations of the same user, target and events are one case; methods keep their order.

    Args:
        table: Whole explanations, one row an event.
        recommendations: By user id, (title, probability) best first.
        users: Largest number of users.

    Raises:
        DataError: Rows of an explanation are missing or out of order.
    """
    groups: dict[tuple[object, ...], list[Influence]] = {}
    for influence in _of_first_users(table, users):
        key = (influence.user_id, influence.target, influence.target_id, influence.events)
        groups.setdefault(key, []).append(influence)
    return [_case(group, recommendations.get(group[0].user_id, ())) for group in groups.values()]


def _of_first_users(table: pa.Table, users: int) -> list[Influence]:
    """Explanations of the first ``users`` users; the rest of the table is not unpacked."""
    starts = explanation_starts(table)
    owners = table["user_id"].take(pa.array(starts)).to_pylist()
    shown = set(list(dict.fromkeys(owners))[:users])
    lengths = np.diff(starts, append=len(table))
    rows = np.repeat([owner in shown for owner in owners], lengths)
    return from_arrow(table.filter(pa.array(rows, pa.bool_())))


def _case(influences: list[Influence], recommended: Sequence[tuple[str, float]]) -> Case:
    first = influences[0]
    name = first.target_name or first.target_id
    words = gap_words("en")
    codes = gap_codes(np.array([event.timestamp for event in first.events]))
    return Case(
        methods=[Method.of(influence) for influence in influences],
        name=name,
        on_list=first.target == "item" and any(title == name for title, _ in recommended),
        recommended=recommended,
        gaps=[words[code] for code in codes],
    )


def _six(number: float) -> float:
    """Six digits: more than any method is exact to, and half the length."""
    return float(f"{number:.6g}")
