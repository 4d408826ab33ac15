"""A result as Markdown and CSV."""

from __future__ import annotations

import csv
import io

from llm_influence.faithfulness.metrics import METRICS
from llm_influence.faithfulness.result import FaithfulnessResult, Interval

ARROWS = {"high": "↑", "low": "↓", "zero": "→ 0"}
UNDECIDED, UNDEFINED = "°", "n/a"
"""Marks what is not better than random: the paired interval of the difference says so."""


def to_markdown(result: FaithfulnessResult, removal: str | None = None) -> str:
    """One row a method, one column a metric: mean and 95% interval over users."""
    removal = removal or result.removals[0]
    heads = [f"{name} {ARROWS[METRICS[name].better]}" for name in result.metrics]
    lines = [
        f"Removal `{removal}`. Mean [95% bootstrap interval over users]; {UNDECIDED} not better "
        f"than `random`, paired over the same users; {UNDEFINED} not defined.",
        "",
        "| method | " + " | ".join([*heads, "passes"]) + " |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    for method in result.methods:
        cells = [_cell(result, method, metric, removal) for metric in result.metrics]
        passes = result.interval(method, "passes", removal).mean
        name = f"`{method}`" + (" (reference)" if method in result.references else "")
        lines.append("| " + " | ".join([name, *cells, f"{passes:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def to_csv(result: FaithfulnessResult) -> str:
    """`FaithfulnessResult.summary` as CSV, a row a removal, method and metric."""
    records = result.summary()
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def misleading_lines(result: FaithfulnessResult, removal: str | None = None) -> list[str]:
    """Plain sentences on methods that do not beat a reference on a decisive metric."""
    return [
        f"{found['method']} is {found['verdict']} {found['reference']} on {found['metric']}: "
        f"difference {found['difference']:.3f} [{found['low']:.3f}, {found['high']:.3f}], "
        f"{found['better']} is better"
        for found in result.misleading(removal)
    ]


def _cell(result: FaithfulnessResult, method: str, metric: str, removal: str) -> str:
    found = result.interval(method, metric, removal)
    if not found.histories:
        return UNDEFINED
    better = METRICS[metric].better
    wanted = {"high": 1, "low": -1}.get(better)
    apart = result.difference(method, "random", metric, removal)
    marked = wanted is not None and method != "random" and apart.sign != wanted and apart.histories
    return _words(found) + (UNDECIDED if marked else "")


def _words(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
