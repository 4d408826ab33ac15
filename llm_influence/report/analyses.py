"""Analyses as sections of the page: what `llm-influence analyze ... --out FOLDER` wrote.

Analyses and tables without a name here are shown too, under their own names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_influence.analysis.output import shown
from llm_influence.errors import DataError
from llm_influence.report.tables import Cell, Grid, data_uri, flat_facts

ANALYSES = {
    "factors": (
        "Which factors matter",
        "What events of large and of small influence have in common. A factor that goes with "
        "influence need not cause it.",
    ),
    "dynamics": (
        "How long influence lasts, and whether it changes",
        "Influence by age of the event and over the calendar.",
    ),
    "channels": (
        "Which contact led to the conversion",
        "Attribution rules and channel models beside the influence of removing an event. All "
        "describe what goes with conversions; none proves that a contact caused one.",
    ),
    "audit": (
        "Is it fair?",
        "How much of the predictions rests on sensitive features, and whether groups are served "
        "alike.",
    ),
}
"""Heading of each analysis, and one sentence about it."""

TABLES = {
    "factors.ranking": (
        "Ranking",
        "Spread: how far a factor moves influence, without chance. Permutation share: how much the "
        "error of decision trees grows when the factor is shuffled.",
    ),
    "factors.effects": (
        "Effects of levels",
        "Change against the average event with other factors held fixed; intervals are over users.",
    ),
    "factors.interactions": (
        "Pairs",
        "How far two factors together move influence beyond the sum of both.",
    ),
    "factors.interaction_cells": (
        "Pairs that matter, level by level",
        "What each pair of levels adds to the sum of its two.",
    ),
    "factors.weights": (
        "Weights of behaviours",
        "Weight of one event of each behaviour at equal age; the largest is 1.",
    ),
    "factors.strength": (
        "Strength of behaviours",
        "How strongly one event of each behaviour pulls at what it is linked to, at age 0, and its "
        "half-life. The largest strength is 1.",
    ),
    "factors.share_of_chosen": (
        "Share of what was chosen",
        "How much of the chosen targets the events of each behaviour account for. It is not their "
        "strength: old or weak events are linked to what was chosen more rarely.",
    ),
    "dynamics.half_lives": (
        "Half-lives",
        "Age at which an event counts half, by the form of decay that fits best.",
    ),
    "dynamics.decay": ("Decay", "Mean influence by age of the event."),
    "dynamics.drift": ("Drift", "Mean influence by window of the calendar."),
    "dynamics.changes": (
        "Change points",
        "Windows from which on influence differs from what it was before.",
    ),
    "dynamics.moved": (
        "Before and after",
        "What differs between two tables, with the same users and events paired.",
    ),
    "channels.shares": (
        "Shares of channels",
        "Credit of each channel under each rule or model, as a share of all credit.",
    ),
    "channels.channels": ("Channels", "Contacts and conversions of each channel."),
    "channels.distances": (
        "Distances between the estimates",
        "Distance to the model's own shares, which come from removing the channel's events.",
    ),
    "audit.verdict": (
        "Verdict",
        "A feature is unfair if it moves what users of equal history get, or if it alone changes "
        "the recommendation.",
    ),
    "audit.differences": (
        "Differences between groups",
        "Raw differences, and those among users of equal history.",
    ),
    "audit.proxies": ("Proxies", "Behaviour that reveals the sensitive feature."),
    "audit.fairness_test": (
        "Counterfactual fairness test",
        "Share of users whose first recommendation changes with the feature alone.",
    ),
}
"""The same for the tables of an analysis."""

MOST_ROWS = 40
"""Rows of a table on the page; its CSV has all."""

_KINDS = {"svg": "image/svg+xml", "png": "image/png"}
"""Endings of figures, the one that is taken first."""


@dataclass(frozen=True, slots=True)
class Section:
    """One analysis: heading, one sentence, what was analyzed, and its tables."""

    title: str
    note: str
    facts: dict[str, str]
    tables: list[Grid]


def read_analyses(folders: Sequence[str | Path]) -> list[Section]:
    """All analyses of these folders, in their order, then by file name.

    Raises:
        DataError: A folder is missing, holds no analysis, or a file of one cannot be read.
    """
    return [_section(path, tree) for folder in folders for path, tree in _analyses(Path(folder))]


def _analyses(folder: Path) -> Sequence[tuple[Path, Mapping[str, Any]]]:
    """The analyses of one folder, without JSON of other kinds."""
    if not folder.is_dir():
        raise _refused(folder, "is no folder")
    trees = [(path, _read(path)) for path in sorted(folder.glob("*.json"))]
    analyses = [(path, t) for path, t in trees if isinstance(t, dict) and "analysis" in t]
    if not analyses:
        raise _refused(folder, "holds no analysis")
    return analyses


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(path, f"cannot be read ({error})") from error


def _refused(place: Path, problem: str) -> DataError:
    return DataError(
        problem,
        where=str(place),
        expected="a folder that `llm-influence analyze ... --out FOLDER` wrote",
        fix="name such a folder, or run the analysis again",
    )


def _section(path: Path, tree: Mapping[str, Any]) -> Section:
    name, tables = tree["analysis"], tree.get("tables")
    if not isinstance(name, str) or not isinstance(tables, dict):
        raise _refused(path, "has an analysis without a name or tables")
    facts = {key: value for key, value in tree.items() if key not in ("analysis", "tables")}
    title, note = ANALYSES.get(name, (_words(name), ""))
    grids = [_grid(path, name, key, records) for key, records in tables.items()]
    return Section(title, note, flat_facts(facts), grids)


def _grid(path: Path, analysis: str, key: str, records: object) -> Grid:
    if not isinstance(records, list) or not all(map(_is_flat, records)):
        raise _refused(path, f"has a table {key!r} that is no list of flat records")
    columns = list(dict.fromkeys(name for record in records for name in record))
    numbers = {name: _holds_numbers(records, name) for name in columns}
    title, note = TABLES.get(f"{analysis}.{key}", (_words(key), ""))
    stem = f"{analysis}_{key}"
    return Grid(
        name=stem,
        title=title,
        heads=[Cell(name.replace("_", " "), numbers[name]) for name in columns],
        rows=[
            [Cell(shown(record.get(name)), numbers[name]) for name in columns]
            for record in records[:MOST_ROWS]
        ],
        records=[{name: record.get(name) for name in columns} for record in records],
        note=note,
        figure=_figure(path.with_name(stem)),
    )


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _is_flat(record: object) -> bool:
    return isinstance(record, dict) and not any(
        isinstance(value, (dict, list)) for value in record.values()
    )


def _holds_numbers(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    known = [record[name] for record in records if record.get(name) is not None]
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known)


def _figure(stem: Path) -> str | None:
    for ending, kind in _KINDS.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        if path.exists():
            try:
                return data_uri(kind, path.read_bytes())
            except OSError as error:
                raise _refused(path, f"cannot be read ({error.strerror})") from error
    return None
