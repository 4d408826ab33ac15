"""What the page calls analyses and their tables, and the one sentence that explains each.

Analyses and tables that are not named here are shown too, under their own names.

Analyses as sections of the page: what `llm-influence analyze ... --out FOLDER` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_influence.analysis.output import shown
from llm_influence.errors import DataError
from llm_influence.report.tables import CsvLink, csv_link, data_uri, flat_facts


@dataclass(frozen=True, slots=True)
class Words:
    """A heading, and one sentence about it."""

    title: str
    note: str = ""


ANALYSES = {
    "factors": Words(
        "Which factors matter",
        "What events of large and of small influence have in common. A factor that goes with "
        "influence need not cause it.",
    ),
    "dynamics": Words(
        "How long influence lasts, and whether it changes",
        "Influence by age of the event and along the calendar.",
    ),
    "attribution": Words(
        "Which touch led to the conversion",
        "Rules of thumb and models of channels beside the influence of removing an event. All say "
        "what goes with conversions, none proves that a contact caused one.",
    ),
    "audit": Words(
        "Is it fair?",
        "How much of the predictions rests on sensitive features, and whether groups are served "
        "alike.",
    ),
}

TABLES = {
    ("factors", "ranking"): Words(
        "Ranking",
        "Spread: how far a factor moves influence, freed of chance. Permutation share: what the "
        "error of trees grows by when it is shuffled.",
    ),
    ("factors", "effects"): Words(
        "Effects of levels",
        "Change against the average event, other factors held, with intervals over users.",
    ),
    ("factors", "interactions"): Words(
        "Pairs", "How far two factors together move influence beyond the sum of both."
    ),
    ("factors", "interaction_cells"): Words(
        "Pairs that matter, level by level", "What each pair of levels adds to the sum of its two."
    ),
    ("factors", "weights"): Words(
        "Weights of behaviours", "What one event of each behaviour counts at equal age; most is 1."
    ),
    ("dynamics", "half_lives"): Words(
        "Half-lives", "After how long an event counts half, by the form of decay that fits best."
    ),
    ("dynamics", "decay"): Words("Decay", "Mean influence by age of the event."),
    ("dynamics", "drift"): Words("Drift", "Mean influence by window of the calendar."),
    ("dynamics", "changes"): Words(
        "Change points", "Windows from which on influence is no longer what it was before."
    ),
    ("dynamics", "moved"): Words(
        "Before and after", "What moved between two tables, the same users and events paired."
    ),
    ("attribution", "shares"): Words(
        "Shares of channels",
        "What each way of counting lays to a channel, as a share of what it lays to all of them.",
    ),
    ("attribution", "channels"): Words("Channels", "Touches and conversions of each channel."),
    ("attribution", "distances"): Words(
        "How far the ways of counting are apart",
        "From the model's shares, the effect of removing the channel's events.",
    ),
    ("audit", "verdict"): Words(
        "Verdict",
        "Unfair is a feature that moves what users of equal history get, or that alone changes it.",
    ),
    ("audit", "gaps"): Words(
        "Gaps between groups", "Differences as they are, and among users of equal history."
    ),
    ("audit", "proxies"): Words("Proxies", "Behaviour that gives the sensitive feature away."),
    ("audit", "flips"): Words(
        "Flips", "Share of users whose first recommendation changes with the feature alone."
    ),
}


def words_of(name: str) -> Words:
    """Of an analysis."""
    return ANALYSES.get(name, Words(_plain(name)))


def words_of_table(analysis: str, table: str) -> Words:
    """Of one of its tables."""
    return TABLES.get((analysis, table), Words(_plain(table)))


def _plain(name: str) -> str:
    return name.replace("_", " ").capitalize()


MOST_ROWS = 40
"""Rows of a table on the page; its CSV has all."""

_KINDS = {"svg": "image/svg+xml", "png": "image/png"}
"""Endings of figures, the one that is taken first."""


@dataclass(frozen=True, slots=True)
class TableCell:
    """One cell."""

    text: str
    number: bool


@dataclass(frozen=True, slots=True)
class AnalysisTable:
    """A table with the figure drawn of it.

    Attributes:
        title: Its heading.
        note: One sentence, or nothing.
        headings: Of the columns, and whether they hold numbers.
        rows: The first `MOST_ROWS`.
        count: Rows in all.
        csv: Link to all of them.
        figure: The figure's address, a data URI; None where none was drawn. A browser runs no
            script of a picture and fetches nothing for it, whatever the file holds.
    """

    title: str
    note: str
    headings: list[TableCell]
    rows: list[list[TableCell]]
    count: int
    csv: CsvLink
    figure: str | None


@dataclass(frozen=True, slots=True)
class AnalysisSection:
    """One analysis.

    Attributes:
        title: Its heading.
        note: One sentence, or nothing.
        facts: What was analysed, label to value.
        tables: In the order of the file.
    """

    title: str
    note: str
    facts: dict[str, str]
    tables: list[AnalysisTable]


def read_analyses(folders: Sequence[str | Path]) -> list[AnalysisSection]:
    """All analyses of these folders, in their order, then by file name.

    Raises:
        DataError: A folder is missing, holds no analysis, or a file of one cannot be read.
    """
    return [_section(path, tree) for folder in folders for path, tree in _analyses(Path(folder))]


def _analyses(folder: Path) -> Sequence[tuple[Path, Mapping[str, Any]]]:
    """The analyses of one folder; JSON of other kinds is passed over."""
    if not folder.is_dir():
        raise _refused(folder, "is no folder")
    trees = [(path, _read(path)) for path in sorted(folder.glob("*.json"))]
    found = [(path, tree) for path, tree in trees if isinstance(tree, dict) and "analysis" in tree]
    if not found:
        raise _refused(folder, "holds no analysis")
    return found


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(path, f"cannot be read ({error})") from error


def _refused(place: Path, found: str) -> DataError:
    return DataError(
        found,
        where=str(place),
        expected="a folder that `llm-influence analyze ... --out FOLDER` wrote",
        fix="name such a folder, or run the analysis again",
    )


def _section(path: Path, tree: Mapping[str, Any]) -> AnalysisSection:
    name, tables = tree["analysis"], tree.get("tables")
    if not isinstance(name, str) or not isinstance(tables, dict):
        raise _refused(path, "has an analysis without a name or tables")
    facts = {key: value for key, value in tree.items() if key not in ("analysis", "tables")}
    words = words_of(name)
    found = [_table(path, name, key, records) for key, records in tables.items()]
    return AnalysisSection(words.title, words.note, flat_facts(facts), found)


def _table(path: Path, analysis: str, key: str, records: object) -> AnalysisTable:
    if not isinstance(records, list) or not all(_is_flat(record) for record in records):
        raise _refused(path, f"has a table {key!r} that is no list of flat records")
    stem, words = f"{analysis}_{key}", words_of_table(analysis, key)
    columns = list(dict.fromkeys(name for record in records for name in record))
    is_number = [_holds_numbers(records, name) for name in columns]
    rows = [[record.get(name) for name in columns] for record in records]
    return AnalysisTable(
        title=words.title,
        note=words.note,
        headings=_cells([name.replace("_", " ") for name in columns], is_number),
        rows=[_cells(map(shown, row), is_number) for row in rows[:MOST_ROWS]],
        count=len(rows),
        csv=csv_link(stem, [dict(zip(columns, row, strict=True)) for row in rows]),
        figure=_figure(path.with_name(stem)),
    )


def _cells(texts: Iterable[str], is_number: Sequence[bool]) -> list[TableCell]:
    return [TableCell(text, number) for text, number in zip(texts, is_number, strict=True)]


def _is_flat(record: object) -> bool:
    if not isinstance(record, dict):
        return False
    return not any(isinstance(value, (dict, list)) for value in record.values())


def _holds_numbers(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [record.get(name) for record in records]
    known = [value for value in values if value is not None]
    numbers = [isinstance(value, (int, float)) for value in known]
    return all(numbers) and not any(isinstance(value, bool) for value in known)


def _figure(stem: Path) -> str | None:
    for ending, kind in _KINDS.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        if path.exists():
            try:
                return data_uri(kind, path.read_bytes())
            except OSError as error:
                raise _refused(path, f"cannot be read ({error.strerror})") from error
    return None
