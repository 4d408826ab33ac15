"""Write the tables of the docs from docs/benchmarks/*.json and the registry of metrics.

    python -m benchmarks.docs_pages.tables

A table stands between ``<!-- name -->`` and ``<!-- /name -->`` in README.md or a page of docs/.
The overview docs/results/index.md is written whole. A test compares the pages with the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.docs_pages.builders import (
    BATCH,
    CACHE,
    CONTINUAL,
    DEBIASING,
    EVENT_DROPOUT,
    READERS,
    RENDERING,
    SPEED,
    WEIGHTS,
    ablations,
    adapters,
    comparison,
    demo,
    estimators,
    figure_table,
    figures,
    learning,
    listing,
    low_labels,
    measured,
    metrics,
    pivot,
    recovered,
    speed,
)

BENCHMARKS = Path("docs/benchmarks")
OVERVIEW = Path("docs/results/index.md")
SUBJECTS = (
    "- [Next-item prediction](prediction.md): beside SASRec, GRU4Rec, BERT4Rec; new items",
    "- [Feedback](feedback.md): likes, redemption, next category, next activity",
    "- [Training](training.md): adapters, ablations, ways of learning, updates, speed",
    "- [Attribution](attribution.md): speed beside Captum and shap, estimators, sessions",
    "- [Faithfulness](faithfulness.md): on MovieLens-100K, and against known influences",
    "- [Analyses](analysis.md): factors, dynamics, audit, channels",
    "- [Data](data.md): readers, rendering, large catalogues, the film graph",
    "- [The code](house.md): its size and order",
)
"""The pages of results."""


TABLES: dict[str, tuple[str | None, Callable[[dict], str]]] = {
    "demo": ("demo", demo),
    "adapters": ("adapters", adapters),
    "speed": ("training_speed", speed),
    "ablations": ("ablations", ablations),
    "learning": ("learning_ablations", learning),
    "low labels": ("low_labels", low_labels),
    "shapley estimators": ("shapley_estimators", estimators),
    "process recovered": ("planted_truth", recovered),
    "metrics": (None, metrics),
    "attribution speed": ("attribution_speed", partial(listing, columns=SPEED)),
    "attribution scaling": (
        "attribution_scaling",
        partial(pivot, metric="explanations_per_second", form="{:.2f}", keys=("events", "items")),
    ),
    "cache": ("cache", partial(listing, columns=CACHE)),
    "batch": ("batch", partial(listing, columns=BATCH)),
    "readers": ("readers", partial(listing, columns=READERS)),
    "rendering": ("rendering", partial(listing, columns=RENDERING)),
    "million items": ("million_items", figure_table),
    "cold items": ("cold_items", partial(pivot, metric="ndcg@10", form="{:.4f}")),
    "knowledge graph": ("knowledge_graph", partial(pivot, metric="ndcg@10", form="{:.4f}")),
    "continual": ("warm_update", partial(listing, columns=CONTINUAL, task="period")),
    "event dropout": ("event_dropout", partial(listing, columns=EVENT_DROPOUT)),
    "debiasing": (
        "debiasing",
        partial(figures, systems=WEIGHTS, columns=DEBIASING, form="{:.3f}"),
    ),
    "measured": ("faithfulness_ml100k", measured),
    "next item, MovieLens": ("prediction_ml100k", partial(comparison, metric="ndcg@10")),
    "next item, Beauty": ("prediction_beauty", partial(comparison, metric="ndcg@10")),
    "house": ("house", figure_table),
    "memory": ("memory", figure_table),
    "ensemble": ("ensemble", figure_table),
    "likes": ("feedback_ml100k", partial(comparison, metric="auc")),
    "likes within users": ("feedback_ml100k", partial(comparison, metric="gauc")),
    "likes calibration": ("feedback_ml100k", partial(comparison, metric="ece")),
    "redemption": ("complete_journey_redemption", partial(comparison, metric="auc")),
    "next category": ("complete_journey_category", partial(comparison, metric="ndcg@10")),
    "next activity": ("helpdesk", partial(comparison, metric="accuracy")),
}
"""By marker: the JSON file, and what makes the table of it."""


# --- the pages ---------------------------------------------------------------------------------


def pages() -> list[Path]:
    """All pages that may hold a table."""
    return [Path("README.md"), *sorted(Path("docs").rglob("*.md"))]


def markers(text: str) -> list[str]:
    """The tables of a page."""
    return [name for name in TABLES if f"<!-- {name} -->" in text]


def filled(text: str, folder: Path = BENCHMARKS) -> str:
    """A page with its tables as measured."""
    for name in markers(text):
        text = re.sub(
            f"<!-- {name} -->.*<!-- /{name} -->",
            partial(_block, name=name, folder=folder),
            text,
            flags=re.DOTALL,
        )
    return text


def _block(_: re.Match, name: str, folder: Path) -> str:
    file, make = TABLES[name]
    if file is None:
        return f"<!-- {name} -->\n{make({})}\n<!-- /{name} -->"
    benchmark = _read(folder / f"{file}.json")
    source = "" if name == "demo" else f"\n\n{_source(benchmark)}"
    return f"<!-- {name} -->\n{make(benchmark)}{source}\n<!-- /{name} -->"


def _source(benchmark: dict) -> str:
    """The command of a table and the machine on which it ran."""
    hardware = benchmark["hardware"]
    machine = f"{hardware['cpu']}, {hardware['cores']} core(s)"
    accelerator = f"accelerator: {hardware['accelerator'] or 'none'}"
    return f"Command: `{benchmark['command']}`. {machine}, {accelerator}."


def overview(folder: Path = BENCHMARKS) -> str:
    """The page of all benchmarks: figures, command, hardware, versions."""
    lines = ["# Measured figures", "", "By subject:", "", *SUBJECTS, ""]
    lines += ["All figures, by file, with the command that wrote the file:", ""]
    for path in sorted(folder.glob("*.json")):
        lines += _section(path.name, _read(path))
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, benchmark: dict) -> Iterator[str]:
    hardware, versions = benchmark["hardware"], benchmark["versions"]
    yield from (f"## [{benchmark['name']}](../benchmarks/{name})", "")
    yield from (f"`{benchmark['command']}`", "")
    yield from (figure_table(benchmark), "")
    packages = ", ".join(f"{p} {versions[p]}" for p in ("torch", "transformers") if p in versions)
    yield (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, "
        f"accelerator: {hardware['accelerator'] or 'none'}; {packages}."
    )
    yield ""


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Write the overview and the tables of all pages."""
    OVERVIEW.write_text(overview(), encoding="utf-8")
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if markers(text):
            path.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
