"""How influence changes in time: decay with age, drift over the calendar, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_influence.analysis.changes import Drift, compare, drift_of
from llm_influence.analysis.columns import HOUR, Windows, windows_of
from llm_influence.analysis.decay import POWER, Decay, curve, decay_of
from llm_influence.analysis.levels import Cells, factors_of, gather_cells
from llm_influence.analysis.output import (
    Analysis,
    Record,
    Records,
    Table,
    aligned,
    closing_lines,
    draw_rows,
    numbers,
    panels,
    with_interval,
)
from llm_influence.analysis.statistics import LEAST_GROUPS, holm
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import DynamicsOptions
from llm_influence.errors import DataError
from llm_influence.influence.plots import BASELINE, MARKERS, OKABE_ITO
from llm_influence.rendering.time_words import human_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 1e7  # hours; a longer half-life is not printed
NO_FORM = {"zero": "no influence", "unknown": "too few"}
"""Printed instead of a form where none is fitted."""
MOST_SHOWN = 12  # lines of a table in the terminal, and items of the figure of changes


def analyze_dynamics(
    view: InfluenceView,
    options: DynamicsOptions | None = None,
    against: InfluenceView | None = None,
) -> Analysis:
    """Measure how influence falls with age, when it changed, and what differs between two tables.

    Args:
        view: The tables.
        options: Columns, windows and tests. Default: `DynamicsOptions`.
        against: Earlier tables, or those of another model, to compare with; see `compare`.

    Returns:
        Tables ``half_lives``, ``decay``, ``drift``, ``changes`` and ``moved``.

    Raises:
        DataError: There are too few users, an unknown column, a column with one value, one window
            of the given size, no event that matches, only scores of zero, or tables that cannot
            be compared.
        ConfigError: The window or the match is invalid.
    """
    options = options or DynamicsOptions()
    if view.drawn and options.match is None:
        options = replace(options, response="size")  # their mean score is 0 by construction
    view.require_users(LEAST_GROUPS, "standard errors are over users")
    usual = ("behavior", *(name for name in view.columns if name.startswith("item:")))
    required = options.by is not None
    factors, left_out = factors_of(view, options.by or usual, required=required)
    times = view.table("SELECT min(last_time) AS low, max(last_time) AS high FROM explanations")
    windows = windows_of(times["low"][0].as_py(), times["high"][0].as_py(), options.window)
    groups = list(gather_cells(view, factors, windows, options))
    _check(groups, options)
    facts: dict[str, Any] = view.facts(options)
    tables = _decay_tables(
        [decay_of(cells) for cells in groups], options.alpha, str(facts["measures"])
    )
    if len(windows.starts) > 1:
        drifts = [
            drift_of(cells, tests=len(groups), alpha=options.alpha, seed=options.seed)
            for cells in groups
        ]
        tables |= _drift_tables(drifts, windows)
    else:
        left_out["drift"] = f"all predictions fall into one {windows.kind}"
    facts |= {
        "windows": windows.kind,
        "from": windows.starts[0].isoformat(),
        "left_out": left_out,
    }
    if against is not None:
        facts["comparison"], moved = compare(view, against, factors, options)
        tables["moved"] = Table(moved, draw_moved(moved))
    return Analysis("dynamics", facts, tables, _shown(facts, tables))


def _check(groups: Sequence[Cells], options: DynamicsOptions) -> None:
    if not groups or not groups[0].events.any():
        raise DataError(
            f"no event matches by {options.match!r}",
            where="influence tables",
            expected="events whose item has the same value as the target's item",
            fix="name another column with --match, or none",
        )
    if not any(cells.totals.any() for cells in groups):
        fix = "explain with a method that gives events different scores"
        raise DataError(
            "every score is zero", where="influence tables", expected="scores that differ", fix=fix
        )


def _decay_tables(decays: Sequence[Decay], alpha: float, measures: str) -> dict[str, Table]:
    """Half-lives, one record for all events and each level, and the curves."""
    lives: list[Record] = []
    curves: list[Record] = []
    for decay, p_holm in zip(decays, holm([decay.p_value for decay in decays]), strict=True):
        lives.append({**_half_life(decay, float(p_holm), alpha), "measures": measures})
        curves += _curve(decay, fitted=lives[-1]["half_life_hours"] is not None)
    labels = {(life["factor"], life["level"]): _label(life) for life in lives}
    return {"half_lives": Table(lives), "decay": Table(curves, draw_decay(curves, labels))}


def _half_life(decay: Decay, p_holm: float, alpha: float) -> Record:
    cells, significant = decay.cells, p_holm <= alpha
    best = decay.chosen if decay.trend == "fades" and significant else None
    none = NO_FORM.get(decay.trend, "grows" if significant else "no decay")
    power = np.exp(best.parameters) if best and best.form is POWER else None
    beyond = best is not None and best.half_life > float(np.nanmax(cells.ages))
    return {
        "factor": cells.factor,
        "level": cells.level,
        "events": int(cells.events.sum()),
        "form": best.form.name if best else none,
        "half_life_hours": best.half_life / HOUR if best else None,
        # "beyond" is longer than any age in the tables.
        "bound": "at most" if best and best.too_short else "beyond" if beyond else "",
        "low": best.interval[0] / HOUR if best else None,
        "high": best.interval[1] / HOUR if best else None,
        "start": best.start if best else None,
        "exponent": None if power is None else float(power[1]),
        "scale_hours": None if power is None else float(power[0]) / HOUR,
        "explained": best.explained if best else None,
        "p_value": decay.p_value,
        "p_holm": p_holm,
        "power_better": decay.better,
    }


def _curve(decay: Decay, *, fitted: bool) -> Iterator[Record]:
    """One record per doubling of age that has events."""
    ages = curve(decay.cells, decay.chosen if fitted else None)
    for low, age, events, mean, half, value in zip(*ages, strict=True):
        yield {
            "factor": decay.cells.factor,
            "level": decay.cells.level,
            "from_hours": low / HOUR,
            "age_hours": age / HOUR,
            "events": int(events),
            **with_interval("mean", mean, half),
            "fitted": None if np.isnan(value) else float(value),
        }


def _drift_tables(drifts: Sequence[Drift], windows: Windows) -> dict[str, Table]:
    """Every window of all events and each level, and the change points."""
    rows: list[Record] = []
    changes: list[Record] = []
    starts = [start.isoformat() for start in windows.starts]
    for drift in drifts:
        name = {"factor": drift.cells.factor, "level": drift.cells.level}
        rows += [
            {
                **name,
                "window": starts[place],
                "events": int(drift.events[place]),
                **with_interval("mean", drift.values[place], drift.halves[place]),
                "segment": sum(change["window"] <= place for change in drift.changes),
            }
            for place in np.flatnonzero(drift.events)
        ]
        changes += [{**name, **c, "window": starts[c["window"]]} for c in drift.changes]
    tables = {"drift": Table(rows, draw_drift(rows, changes))}
    return tables | ({"changes": Table(changes)} if changes else {})


_DURATIONS = {"half-life": "half_life_hours", "from": "low", "to": "high"}


def _shown(facts: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    lines = [f"{facts['events']:,} events of {facts['users']:,} users, {facts['method']}"]
    lives = [
        {**row, **{name: _duration(row[key]) for name, key in _DURATIONS.items()}}
        for row in tables["half_lives"].records[:MOST_SHOWN]
    ]
    columns = ["factor", "level", "events", "form", "bound", *_DURATIONS, "p_holm"]
    lines += aligned(lives, columns)
    if "changes" in tables:
        columns = ["factor", "level", "window", "before", "after", "low", "high", "p_corrected"]
        lines += ["", *aligned(tables["changes"].records[:MOST_SHOWN], columns)]
    elif "drift" in tables:
        lines += ["", f"no significant change between windows ({facts['windows']})"]
    if "moved" in tables:
        lines += ["", f"{facts['comparison']['paired_events']:,} events in both tables"]
        moved = [row for row in tables["moved"].records if row["moved"]][:MOST_SHOWN]
        columns = ["factor", "level", "how", "before", "after", "change", "low", "high", "p_holm"]
        lines += aligned(moved, columns)
    return lines + closing_lines(facts)


def _duration(hours: float | None) -> str | None:
    if hours is None or not hours <= LONGEST:
        return None
    return human_duration(round(hours * HOUR))


# --- figures ---------------------------------------------------------------------------------

MOST_LINES = 6  # lines of a panel; a factor with more levels shows those with the most events
TICKS = ((1 / 60, "1 min"), (1, "1 h"), (24, "1 d"), (24 * 30, "30 d"), (24 * 365, "1 y"))


def _label(life: Record) -> str:
    """Label of a curve: its level, form and half-life, at three digits in a suitable unit."""
    hours, text = life["half_life_hours"], str(life["form"])
    if hours is not None:
        units = ((24.0, "d"), (1.0, "h"), (1 / 60, "min"), (1 / 3600, "s"))
        unit, name = next((u for u in units if hours >= 2 * u[0]), units[-1])
        text += f", half-life {life['bound']} ".rstrip() + f" {hours / unit:.3g} {name}"
    return f"{life['level']}: {text}" if life["level"] else text


def draw_moved(rows: Records) -> Figure:
    """Changes with intervals: every level, and the items with the most significant changes."""
    items = [row for row in rows if row["factor"] == "item"][:MOST_SHOWN]
    drawn = [row for row in rows if row["factor"] != "item"] + items
    names = [
        " ".join(part for part in (row["factor"], row["title"] or row["level"]) if part)
        + (" (unpaired)" if row["how"] == "unpaired" else "")
        + ("" if row["moved"] else " (n.s.)")
        for row in drawn
    ]
    label = "change of mean influence, after minus before"
    return draw_rows(drawn, ("change", "low", "high"), names, label)


def draw_decay(curves: Records, labels: Mapping[tuple[str, str], str]) -> Figure:
    """A panel for each factor: mean influence by age with intervals, and the fitted curve."""
    figure, drawn = panels(curves, 5.2, 3.6, 2)
    for axis, factor, rows in drawn:
        for number, (level, own) in enumerate(_lines(rows)):
            _line(axis, numbers(own, "age_hours") + 1 / 60, own, number, labels[factor, level], "")
            if own[0]["fitted"] is not None:
                ages = numbers(own, "age_hours") + 1 / 60
                axis.plot(ages, numbers(own, "fitted"), color=OKABE_ITO[number], linewidth=1.2)
        axis.set_xscale("log")
        axis.minorticks_off()
        lowest, highest = axis.get_xlim()
        ticks = [tick for tick in TICKS if lowest <= tick[0] <= highest]
        axis.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
        axis.set_xlabel("1 minute + age of the event at the prediction")
        _finish_lines(axis, factor, "mean influence")
    return figure


def draw_drift(rows: Records, changes: Records) -> Figure:
    """A panel for each factor: mean influence by window, and changes as vertical lines."""
    figure, drawn = panels(rows, 5.2, 3.6, 2)
    for axis, factor, records in drawn:
        for number, (level, own) in enumerate(_lines(records)):
            days = np.array([date.fromisoformat(row["window"]).toordinal() for row in own])
            _line(axis, days, own, number, level or "all events", "-")
            for change in changes:
                if (change["factor"], change["level"]) == (factor, level):
                    at = date.fromisoformat(change["window"]).toordinal()
                    axis.axvline(at, color=OKABE_ITO[number], linestyle="--", linewidth=1)
        ticks = [int(at) for at in axis.get_xticks() if at >= 1][::2]
        axis.set_xticks(ticks, [date.fromordinal(at).isoformat() for at in ticks])
        axis.set_xlabel("first day of the window; dashed: a change point")
        _finish_lines(axis, factor, "mean influence at usual ages")
    return figure


def _lines(rows: Records) -> list[tuple[str, Records]]:
    """The levels with the most events, in their order."""
    levels: list[tuple[str, Records]] = [
        (str(name), list(own)) for name, own in groupby(rows, key=lambda row: row["level"])
    ]
    sizes = [sum(row["events"] for row in own) for _, own in levels]
    least = sorted(sizes, reverse=True)[min(MOST_LINES, len(sizes)) - 1]
    return [line for line, size in zip(levels, sizes, strict=True) if size >= least][:MOST_LINES]


def _line(
    axis: Axes, along: np.ndarray, rows: Records, number: int, label: str, linestyle: str
) -> None:
    """Means with intervals, without those of too few users, which only the CSV has."""
    known = ~np.isnan(numbers(rows, "low"))
    middle, low, high = (numbers(rows, name)[known] for name in ("mean", "low", "high"))
    axis.errorbar(
        along[known],
        middle,
        yerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
        fmt=MARKERS[number],
        linestyle=linestyle or "none",
        color=OKABE_ITO[number],
        markersize=4,
        linewidth=0.8,
        elinewidth=0.9,
        capsize=1.5,
        label=label.replace("$", r"\$"),
    )


def _finish_lines(axis: Axes, title: str, label: str) -> None:
    axis.axhline(0, color=BASELINE, linewidth=0.8, zorder=0)
    axis.set_ylabel(label)
    axis.set_title(title, loc="left", fontsize=10, parse_math=False)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)
