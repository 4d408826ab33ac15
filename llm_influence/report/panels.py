"""The averages at the foot of the page."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.influence.numbers import aligned, decimals_for, percent
from llm_influence.report.aggregate import by_behavior, by_gap, by_recency, by_value
from llm_influence.report.bars import Bar, Scale
from llm_influence.report.csv_link import CsvLink, csv_link


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One group: how many events, how much they matter, in which direction."""

    label: str
    events: str
    size: Bar
    size_written: str
    mean: Bar
    mean_written: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One average view; ``mean_zero`` is where zero lies on the track of the means, in percent."""

    title: str
    note: str
    mean_zero: float
    rows: list[PanelRow]
    csv: CsvLink


_VIEWS = (
    ("By recency", "place counted from the end of the history; 1 is the latest event", by_recency),
    ("By time since the event before", "the pause that led up to the event", by_gap),
    ("By behaviour", "what the user did", by_behavior),
    ("By value", "rating or amount, for events that have one", by_value),
)


def panels(table: pa.Table, method: str) -> list[Panel]:
    """The views of one method that have something to show.

    Args:
        table: Whole explanations.
        method: Whose scores are averaged.
    """
    table = table.filter(pc.equal(table["method"], method))
    share = pc.all(pc.equal(table["units"], "share")).as_py()
    drawn = [_panel(title, note, view(table), share) for title, note, view in _VIEWS]
    return [panel for panel in drawn if panel.rows]


def _panel(title: str, note: str, means: pa.Table, share: bool) -> Panel:
    size = Scale.fit(means["mean_absolute"].to_numpy(), share=True)
    # Means share the size's measure, so that a mean near zero looks near zero.
    largest = means["mean_absolute"].to_numpy().max(initial=0.0)
    mean = Scale.fit([*means["mean"].to_pylist(), largest], share=share)
    decimals = decimals_for(means["mean_absolute"])
    rows = [
        PanelRow(
            label=row["group"],
            events=f"{row['events']:,}",
            size=size.bar(row["mean_absolute"]),
            size_written=_written(row["mean_absolute"], decimals, share).lstrip("+"),
            mean=mean.bar(row["mean"]),
            mean_written=_written(row["mean"], decimals, share),
        )
        for row in means.to_pylist()
    ]
    csv = csv_link(title.lower().replace(" ", "_"), means.to_pylist())
    return Panel(title, note, mean.zero, rows, csv)


def _written(value: float, decimals: int, share: bool) -> str:
    return percent(value) if share else aligned(value, decimals)
