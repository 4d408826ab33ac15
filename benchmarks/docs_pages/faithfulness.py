"""The tables of docs/how-to/measure_faithfulness.md: every metric of the registry, and what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llm_influence.faithfulness.metrics import METRICS
from llm_influence.faithfulness.result import ARROWS

PAGE = Path("docs/how-to/measure_faithfulness.md")
METRIC_ROWS = re.compile(r"<!-- metrics -->.*<!-- /metrics -->", re.DOTALL)
MEASURED = re.compile(r"<!-- measured -->.*<!-- /measured -->", re.DOTALL)
SHOWN = (
    *("lds", "deletion_auc", "insertion_auc", "abpc", "comprehensiveness_aopc"),
    *("counterfactual_share", "randomisation", "evaluations"),
)
"""Metrics of the measured table; the JSON file holds all."""


def faithfulness_page(text: str, folder: Path) -> str:
    """The page with its tables as they should be; without a measurement, no measured table."""
    path = folder / "faithfulness_ml100k.json"
    text = METRIC_ROWS.sub(lambda _: metrics_table(), text)
    if not path.is_file():
        return text
    measured = json.loads(path.read_text(encoding="utf-8"))
    return MEASURED.sub(lambda _: measured_table(measured), text)


def metrics_table() -> str:
    """Every metric: equation, which way is better, paper, when it lies."""
    rows = [
        f"| `{metric.name}` {ARROWS[metric.better]} | {_safe(metric.equation)} | {metric.paper} "
        f"| {_safe(metric.lies)} |"
        for metric in METRICS.values()
    ]
    heads = ["| metric | equation | paper | when it lies |", "|---|---|---|---|"]
    return "\n".join(["<!-- metrics -->", *heads, *rows, "<!-- /metrics -->"])


def measured_table(benchmark: dict) -> str:
    """One row a method under the first removal, mean and interval, with the protocol below."""
    protocol = benchmark["protocol"]
    removal = protocol["removal"].partition(",")[0]
    cells: dict[str, dict[str, str]] = {}
    for row in benchmark["rows"]:
        if row["task"] == f"removal {removal}" and row["metric"] in SHOWN:
            cells.setdefault(row["system"], {})[row["metric"]] = _cell(row)
    rows = [
        f"| `{method}` | " + " | ".join(found.get(name, "") for name in SHOWN) + " |"
        for method, found in cells.items()
    ]
    named = [
        f"{name} {ARROWS[METRICS[name].better]}" if name in METRICS else name for name in SHOWN
    ]
    note = (
        f"{protocol['data']}: {protocol['histories']}. Target: {protocol['target']}. Removal: "
        f"{protocol['removal']}; {protocol['budget']}. Recommended beforehand: "
        f"`{benchmark['figures']['recommended']}`. Mean and 95% bootstrap interval over users."
    )
    misleading = [f"- {line}" for line in protocol["misleading"]]
    table = ["| method | " + " | ".join(named) + " |", "|---|" + "---|" * len(SHOWN), *rows]
    notes = ["", "Not better than a reference:", "", *misleading] if misleading else []
    return "\n".join(["<!-- measured -->", *table, "", note, *notes, "<!-- /measured -->"])


def _cell(row: dict) -> str:
    if row["mean"] is None:
        return "n/a"
    if row["metric"] == "evaluations":
        return f"{row['mean']:.0f}"
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _safe(text: str) -> str:
    """A vertical bar would end the cell."""
    return text.replace("|", "\\|")
