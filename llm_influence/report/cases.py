"""Where a bar starts and how long it is. Lengths are in proportion to scores, always.

Explained predictions as the page shows them: a case for each user and target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from llm_influence.influence.facts import column, percent, plain, tidy
from llm_influence.influence.influence import Influence, from_arrow
from llm_influence.influence.table import explanation_starts
from llm_influence.rendering.time_words import gap_codes, gap_words
from llm_influence.report.tables import CsvLink, csv_link

# Even a history that only supports keeps a little room left of zero, so that zero is visible.
_LEAST_SIDE = 0.08
# Below this a score has no length: dividing by it would overflow.
_NOTHING = 1e-200


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar on its track, in percent of the track's width.

    Attributes:
        left: Where it begins.
        width: How long it is.
        kind: ``for``, ``against`` or ``share``; names the colour.
    """

    left: float
    width: float
    kind: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A track with a zero on it, as much room on each side as the scores need.

    Attributes:
        zero: Where zero is, in percent of the track.
        unit: Percent of the track for a score of 1; the same on both sides.
        share: Scores are shares: they have no side.
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


_MOST_NAMED = 5

Recommendations = Mapping[str, Sequence[tuple[str, float]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One score: its bar and its number."""

    bar: Bar
    written: str


@dataclass(frozen=True, slots=True)
class Row:
    """One event: when, what, and its score by each method of the case, the first method first.

    ``gate`` is empty but for a gated recurrence.
    """

    gap: str
    what: str
    name: str
    gate: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Named:
    """An event with its score, for the short lists."""

    name: str
    what: str
    written: str


@dataclass(frozen=True, slots=True)
class Recommended:
    """A line of the top list; ``explained`` marks the target of the case."""

    name: str
    chance: str
    explained: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One explained prediction of one user.

    Attributes:
        number: 1, 2, 3... on the page.
        user_id: Whose.
        target: Kind of the target.
        target_name: For people.
        chance: Its probability.
        sentence: What the first method says.
        share: The first method's scores are shares, without a side.
        methods: Explanations by method, the first is drawn large.
        scales: The scale of each method.
        rows: The events, oldest first.
        supporting: The strongest supporting events of the first method.
        opposing: The strongest opposing events of the first method.
        recommended: The user's top list, empty if it was not given.
        csv: The events with their scores.
    """

    number: int
    user_id: str
    target: str
    target_name: str
    chance: str
    sentence: str
    share: bool
    methods: list[Influence]
    scales: list[Scale]
    rows: list[Row]
    supporting: list[Named]
    opposing: list[Named]
    recommended: list[Recommended]
    csv: CsvLink


def cases(table: pa.Table, recommendations: Recommendations, users: int) -> list[Case]:
    """Lay out the explanations of the first users of a table.

    Explanations of the same user, target and events are one case; methods keep their order.

    Args:
        table: Whole explanations, as `to_arrow` makes them.
        recommendations: By user id, (title, probability) best first.
        users: How many users, at most.

    Raises:
        DataError: Rows of an explanation are missing or out of order.
    """
    groups: dict[tuple[object, ...], list[Influence]] = {}
    for influence in _of_first_users(table, users):
        key = (influence.user_id, influence.target, influence.target_id, influence.events)
        groups.setdefault(key, []).append(influence)
    return [
        _case(number, methods, recommendations.get(methods[0].user_id, ()))
        for number, methods in enumerate(groups.values(), start=1)
    ]


def _of_first_users(table: pa.Table, users: int) -> list[Influence]:
    """Explanations of the first ``users`` users; the rest of the table is not unpacked."""
    starts = explanation_starts(table)
    owners = table["user_id"].take(pa.array(starts)).to_pylist()
    shown = set(list(dict.fromkeys(owners))[:users])
    stops = [*starts[1:], len(table)][: len(starts)]
    rows = [
        np.arange(start, stop)
        for owner, start, stop in zip(owners, starts, stops, strict=True)
        if owner in shown
    ]
    found = from_arrow(table.take(pa.array(np.concatenate(rows)))) if rows else []
    return [influence.by_event() for influence in found]


def _case(
    number: int, methods: list[Influence], recommendations: Sequence[tuple[str, float]]
) -> Case:
    first = methods[0]
    name = first.target_name or first.target_id
    scales = [Scale.fit(each.values, share=each.quality.units == "share") for each in methods]
    on_the_list = first.target == "item" and any(title == name for title, _ in recommendations)
    return Case(
        number=number,
        user_id=first.user_id,
        target=first.target,
        target_name=tidy(name),
        chance=percent(first.prediction),
        sentence=first.to_text(recommended=on_the_list),
        share=first.quality.units == "share",
        methods=methods,
        scales=scales,
        rows=_rows(methods, scales),
        supporting=_named(first, 1),
        opposing=_named(first, -1),
        recommended=_top_list(recommendations, name if on_the_list else None),
        csv=csv_link(f"prediction_{number}", _records(methods)),
    )


def _records(methods: list[Influence]) -> list[dict[str, object]]:
    """One record an event: what it was, and its score by each method."""
    first, names = methods[0], [each.quality.method for each in methods]
    columns = [  # one method may stand twice, with two removals
        f"score_{name}" if names.count(name) == 1 else f"score_{name}_{place}"
        for place, name in enumerate(names, start=1)
    ]
    return [
        {
            "position": place,
            "timestamp": event.timestamp,
            "behavior": event.behavior,
            "item": event.item,
            "title": event.title,
            "value": event.value,
            **({} if first.gates is None else {"gate": _six(first.gates[place])}),
            **dict(zip(columns, (_six(each.values[place]) for each in methods), strict=True)),
        }
        for place, event in enumerate(first.events)
    ]


def _six(number: float) -> float:
    """Six digits: more than any method is exact to, and half the length."""
    return float(f"{number:.6g}")


def _rows(methods: list[Influence], scales: list[Scale]) -> list[Row]:
    events, gates = methods[0].events, methods[0].gates
    written = [column(each.values, share=each.quality.units == "share") for each in methods]
    words = gap_words("en")
    codes = gap_codes(np.array([event.timestamp for event in events]))
    return [
        Row(
            gap=words[code],
            what=event.behavior + ("" if event.value is None else f" {plain(event.value)}"),
            name=tidy(event.name),
            gate="" if gates is None else percent(gates[place]),
            cells=[
                Cell(scale.bar(each.values[place]), column[place])
                for each, scale, column in zip(methods, scales, written, strict=True)
            ],
        )
        for place, (event, code) in enumerate(zip(events, codes, strict=True))
    ]


def _named(influence: Influence, side: int) -> list[Named]:
    """The strongest events with a positive (``side`` 1) or negative (-1) score."""
    order = np.lexsort((-np.arange(len(influence.values)), -side * influence.values))
    places = [place for place in order[:_MOST_NAMED] if side * influence.values[place] > 0]
    events = [influence.events[place] for place in places]
    written = column(influence.values, share=influence.quality.units == "share")
    return [
        Named(
            name=tidy(event.name),
            what=event.behavior + ("" if event.value is None else f" {plain(event.value)}"),
            written=written[place],
        )
        for event, place in zip(events, places, strict=True)
    ]


def _top_list(
    recommendations: Sequence[tuple[str, float]], explained: str | None
) -> list[Recommended]:
    return [
        Recommended(tidy(title), percent(chance), title == explained)
        for title, chance in recommendations
    ]
