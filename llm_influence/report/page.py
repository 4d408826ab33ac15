"""The report: one self-contained HTML file about the model, its quality and its explanations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.influence.facts import percent, signed, tidy, what
from llm_influence.influence.influence import Influence, by_event, to_arrow
from llm_influence.influence.table import explanation_starts
from llm_influence.report.analyses import MOST_ROWS, read_analyses
from llm_influence.report.averages import panels
from llm_influence.report.cases import cases
from llm_influence.report.tables import ReportFacts, csv_uri, metric_grids
from llm_influence.utils import write_text


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
