"""One self-contained HTML page about explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.influence.facts import column, percent, signed, tidy, what
from llm_influence.influence.influence import Influence, by_event, from_arrow, to_arrow
from llm_influence.influence.memory_fact import MemoryParts
from llm_influence.influence.table import explanation_starts
from llm_influence.rendering.time_words import gap_codes, gap_words
from llm_influence.report.analyses import MOST_ROWS, read_analyses
from llm_influence.report.tables import Bar, ReportFacts, Scale, csv_uri, metric_grids, panels
from llm_influence.utils import write_text

# Even a history that only supports keeps a little room left of zero, so that zero is visible.
# Below this a score has no length: dividing by it would overflow.
_MOST_NAMED = 5

Recommendations = Mapping[str, Sequence[tuple[str, float]]]


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
        """Places of the strongest events scored alone, for the target (1) or against it (-1)."""
        scores = side * self.influence.values
        scores[list(self.influence.block)] = 0.0
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

    @property
    def memory(self) -> list[str]:
        """Lines that split the probability among the language model and the events."""
        first = self.first
        if first.memory_shares is None or first.memory_log_odds is None:
            return []
        columns = (first.prediction, first.memory_shares, first.memory_log_odds)
        return MemoryParts.of(first.events, (first.target_id, self.name), *columns).lines()

    def records(self) -> list[dict[str, Any]]:
        """One record an event: what it was, and its score by each method, to six digits."""
        names = [method.influence.quality.method for method in self.methods]
        columns = {  # one method may occur twice, with two removals
            f"score_{name}" if names.count(name) == 1 else f"score_{name}_{place}": method
            for place, (name, method) in enumerate(zip(names, self.methods, strict=True), start=1)
        }
        gates, memory = self.first.gates, self.first.memory_shares
        return [
            {
                "position": place,
                "timestamp": event.timestamp,
                "behavior": event.behavior,
                "item": event.item,
                "title": event.title,
                "value": event.value,
                **({} if gates is None else {"gate": _six(gates[place])}),
                **({} if memory is None else {"memory_share": _six(memory[place])}),
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


def build_report(
    *,
    influences: pa.Table | Sequence[Influence],
    facts: ReportFacts,
    out: Path | str,
    users: int = 12,
    analyses: Sequence[Path | str] = (),
) -> Path:
    """Write the report.

    The page holds everything it needs: no script, no font, no link to another place. Averages are
    over all explanations; single explanations are shown for the first users. Where several methods
    explain the same prediction, the first is drawn large and the others beside it.

    Args:
        influences: An influence table (`read_tables`, `to_arrow`) or explanations.
        facts: Title, model, protocol, metrics and recommendations.
        out: The HTML file. Missing folders are created, an existing file is replaced.
        users: Largest number of users shown one by one. Default 12.
        analyses: Folders that `llm-influence analyze ... --out FOLDER` wrote; each analysis becomes
            a section.

    Returns:
        ``out`` as a path.

    Raises:
        DataError: Rows of an explanation are missing or out of order, or a folder of ``analyses``
            holds none.
        SchemaError: The table lacks a column.
        OutputError: The file cannot be written. Nothing is left half written.
    """
    page = render_report(influences=influences, facts=facts, users=users, analyses=analyses)
    return write_text(Path(out), page)


def render_report(
    *,
    influences: pa.Table | Sequence[Influence],
    facts: ReportFacts,
    users: int = 12,
    analyses: Sequence[Path | str] = (),
) -> str:
    """The page of `build_report` as text."""
    table = influences if isinstance(influences, pa.Table) else to_arrow(influences)
    table = by_event(table)
    methods = pc.unique(table["method"]).to_pylist()
    return _template().render(
        facts=facts,
        metrics=metric_grids(facts.metrics),
        cases=cases(table, facts.recommendations, users),
        panels=panels(table, methods[0]) if methods else [],
        analyses=read_analyses(analyses),
        most_rows=MOST_ROWS,
        methods=methods,
        explanations=len(explanation_starts(table)),
        users=pc.count_distinct(table["user_id"]).as_py(),
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llm_influence.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"csv_uri": csv_uri, "percent": percent, "signed": signed, "tidy": tidy, "what": what}
    environment.filters.update(filters)
    return environment.get_template("report.html.j2")
