"""How influence moves in time: decay with age, drift over the calendar, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_influence.analysis.comparison import compare
from llm_influence.analysis.decay import POWER, Decay, FittedForm, corrected, curve, decay_of
from llm_influence.analysis.drift import Drift, drift_of
from llm_influence.analysis.event_cells import Cells, Response, gather_cells
from llm_influence.analysis.levels import Factor, Windows, factor_of, windows_of
from llm_influence.analysis.output import Analysis, Table, aligned
from llm_influence.analysis.plots import draw_decay, draw_drift, draw_moved
from llm_influence.analysis.statistics import LEAST_PARTS
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from llm_influence.rendering.time_words import human_duration

HOUR = 3600
LONGEST = 1e7
"""Hours; a longer half-life is not spelled out."""
UNFITTED = {"zero": "no influence", "unknown": "too few"}
"""What stands in place of a form where none could be fitted."""
SHOWN = 12
"""Lines of a table for the terminal."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DynamicsOptions:
    """What is asked.

    Attributes:
        by: Columns of the view whose levels are told apart; default: ``behavior``, and every
            column of the item table that has few distinct values.
        window: ``day``, ``week``, ``month`` or a number of days; default: by the time covered.
        response: ``score`` keeps the sign, ``size`` asks how strong whatever the direction.
        match: Column that tells which events speak for the target (`parts.speaking`).
        alpha: Chance of any false alarm: among the decays, among the change points, and among the
            levels of each factor of a comparison.
        seed: Of the signs drawn for change points.
    """

    by: tuple[str, ...] | None = None
    window: str | None = None
    response: Response = "score"
    match: str | None = None
    alpha: float = 0.05
    seed: int = 0


def analyze_dynamics(
    view: InfluenceView,
    options: DynamicsOptions | None = None,
    against: InfluenceView | None = None,
) -> Analysis:
    """Decay curves and half-lives, drift over calendar windows, and what changed.

    Args:
        view: The tables.
        options: What is asked.
        against: Tables of another model or period, the earlier ones, to compare with
            (`llm_influence.analysis.comparison`).

    Raises:
        DataError: Too few users, an unknown column, a column without two levels, all predictions
            in one window of the size asked for, no event that matches, all scores zero, or tables
            that cannot be compared.
        ConfigError: The window or the match is not one.
    """
    options = options or DynamicsOptions()
    view.require_users(LEAST_PARTS, "standard errors are over users")
    factors, left_out = factors_by(view, options.by)
    windows = _windows(view, options.window)
    groups = list(
        gather_cells(view, factors, windows, response=options.response, match=options.match)
    )
    _refuse_nothing(groups, options)
    decays = [decay_of(cells) for cells in groups]
    tables = _decay_tables(decays, options.alpha)
    if len(windows.starts) > 1:
        drifts = [
            drift_of(cells, groups=len(groups), alpha=options.alpha, seed=options.seed)
            for cells in groups
        ]
        tables |= _drift_tables(drifts, windows)
    else:
        left_out["drift"] = f"all predictions fall into one {windows.kind}"
    facts: dict[str, Any] = {
        "method": view.method,
        "units": view.units,
        "events": view.events,
        "explanations": view.explanations,
        "users": view.users,
        "options": asdict(options),
        "windows": windows.kind,
        "from": windows.starts[0].isoformat(),
        "left_out": left_out,
    }
    if against is not None:
        found = compare(view, against, factors, options.response, options.match)
        moved = [asdict(row) for row in found.moved(options.alpha)]
        facts["comparison"] = found.facts
        tables["moved"] = Table(moved, draw_moved(moved))
    return Analysis("dynamics", facts, tables, _shown(facts, tables))


def factors_by(
    view: InfluenceView, asked: Sequence[str] | None
) -> tuple[list[Factor], dict[str, str]]:
    """The factors whose levels are told apart, and why others are none."""
    names = (
        ["behavior", *(name for name in view.columns if name.startswith("item:"))]
        if asked is None
        else list(dict.fromkeys(asked))
    )
    cut = {name: factor_of(view, name, asked=asked is not None) for name in names}
    factors = [found for found in cut.values() if isinstance(found, Factor)]
    return factors, {name: why for name, why in cut.items() if isinstance(why, str)}


def _windows(view: InfluenceView, asked: str | None) -> Windows:
    times = view.table("SELECT min(last_time) AS low, max(last_time) AS high FROM explanations")
    return windows_of(times["low"][0].as_py(), times["high"][0].as_py(), asked)


def _refuse_nothing(groups: Sequence[Cells], options: DynamicsOptions) -> None:
    everything = groups[0] if groups else None
    if everything is None or not everything.events.any():
        raise DataError(
            f"no event matches by {options.match!r}",
            where="influence tables",
            expected="events whose item shares it with the target's item",
            fix="name another column with --match, or none",
        )
    if not any(cells.totals.any() for cells in groups):
        raise DataError(
            "every score is zero",
            where="influence tables",
            expected="scores that differ",
            fix="explain with a method that tells events apart",
        )


def _decay_tables(decays: Sequence[Decay], alpha: float) -> dict[str, Table]:
    """Half-lives, a record a group, and the curves behind them."""
    lives, curves = [], []
    for decay, p_holm in zip(decays, corrected(decays), strict=True):
        life = _half_life(decay, float(p_holm), alpha)
        lives.append(life)
        curves += list(_curve(decay, life))
    return {
        "half_lives": Table(lives),
        "decay": Table(curves, draw_decay(curves, lives)),
    }


def _half_life(decay: Decay, p_holm: float, alpha: float) -> Record:
    cells, sure = decay.cells, p_holm <= alpha
    found = decay.chosen if decay.trend == "fades" and sure else None
    form = found.form.name if found else UNFITTED.get(decay.trend, "grows" if sure else "no decay")
    own = np.exp(found.parameters) if found and found.form is POWER else None
    return {
        "factor": cells.factor,
        "level": cells.level,
        "events": int(cells.events.sum()),
        "form": form,
        "half_life_hours": found.half_life / HOUR if found else None,
        "bound": _bound(found, float(np.nanmax(cells.ages))) if found else "",
        "low": found.interval[0] / HOUR if found else None,
        "high": found.interval[1] / HOUR if found else None,
        "start": found.start if found else None,
        "exponent": None if own is None else float(own[1]),
        "scale_hours": None if own is None else float(own[0]) / HOUR,
        "explained": found.explained if found else None,
        "p_value": decay.p_value,
        "p_holm": p_holm,
        "power_better": decay.better,
    }


def _bound(found: FittedForm, oldest: float) -> str:
    """``at most`` where no more is known; ``beyond`` where it is longer than any age seen."""
    return "at most" if found.too_short else "beyond" if found.half_life > oldest else ""


def _curve(decay: Decay, life: Record) -> Iterator[Record]:
    """One record a doubling of age that has events."""
    found = curve(decay.cells, decay.chosen if life["half_life_hours"] is not None else None)
    columns = (found.edges, found.ages, found.events, found.means, found.halves, found.fitted)
    for low, age, events, mean, half, fitted in zip(*columns, strict=True):
        yield {
            "factor": decay.cells.factor,
            "level": decay.cells.level,
            "from_hours": low / HOUR,
            "age_hours": age / HOUR,
            "events": int(events),
            "mean": float(mean),
            "low": float(mean - half),
            "high": float(mean + half),
            "fitted": None if np.isnan(fitted) else float(fitted),
        }


def _drift_tables(drifts: Sequence[Drift], windows: Windows) -> dict[str, Table]:
    """Every window of every group, and the changes."""
    rows, changes = [], []
    for drift in drifts:
        name = {"factor": drift.cells.factor, "level": drift.cells.level}
        for place, start in enumerate(windows.starts):
            if not drift.events[place]:
                continue
            mean, half = float(drift.values[place]), float(drift.halves[place])
            rows.append(
                {
                    **name,
                    "window": start.isoformat(),
                    "events": int(drift.events[place]),
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                    "segment": sum(change.window <= place for change in drift.changes),
                }
            )
        for change in drift.changes:
            moved = change.after - change.before
            changes.append(
                {
                    **name,
                    "window": windows.starts[change.window].isoformat(),
                    "before": change.before,
                    "after": change.after,
                    "change": moved,
                    "low": moved - change.half,
                    "high": moved + change.half,
                    "p_corrected": change.p_value,
                }
            )
    found = {"drift": Table(rows, draw_drift(rows, changes))}
    return found | ({"changes": Table(changes)} if changes else {})


def _duration(hours: float | None) -> str | None:
    if hours is None or not hours <= LONGEST:
        return None
    return human_duration(round(hours * HOUR))


def _shown(facts: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    lines = [f"{facts['events']:,} events of {facts['users']:,} users, {facts['method']}"]
    lives = [
        {**row, **{name: _duration(row[key]) for name, key in _LIFE.items()}}
        for row in tables["half_lives"].records
    ]
    lines += aligned(
        lives[:SHOWN], ["factor", "level", "events", "form", "bound", *_LIFE, "p_holm"]
    )
    if "drift" in tables:
        lines += ["", *_shown_changes(facts, tables)]
    if "moved" in tables:
        told = facts["comparison"]
        lines += ["", f"{told['paired_events']:,} events in both tables"]
        lines += aligned(
            [row for row in tables["moved"].records if row["moved"]][:SHOWN],
            ["factor", "level", "how", "before", "after", "change", "low", "high", "p_holm"],
        )
    return lines + [f"left out: {name} ({why})" for name, why in facts["left_out"].items()]


_LIFE = {"half-life": "half_life_hours", "from": "low", "to": "high"}


def _shown_changes(facts: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    if "changes" not in tables:
        return [f"no change over windows ({facts['windows']}) that is more than chance"]
    columns = ["factor", "level", "window", "before", "after", "low", "high", "p_corrected"]
    return aligned(tables["changes"].records[:SHOWN], columns)
