"""Write the documentation's tables of figures from docs/benchmarks/*.json.

    python scripts/benchmark_tables.py

Fills docs/benchmarks/README.md and the tables of the front page and docs/adapters.md; a test holds
them in step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

FRONT = Path("README.md")
OVERVIEW = Path("docs/benchmarks/README.md")
ADAPTERS = Path("docs/adapters.md")
DEMO = re.compile(r"<!-- demo -->.*<!-- /demo -->", re.DOTALL)

ADAPTER_ROWS = re.compile(r"<!-- adapters -->.*<!-- /adapters -->", re.DOTALL)


def overview(folder: Path) -> str:
    """The page about all benchmarks: figures, command, hardware, versions."""
    lines = ["# Measured figures", "", "Each file here was written by the command beside it.", ""]
    for path in sorted(folder.glob("*.json")):
        lines += _section(path.name, json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, benchmark: dict) -> Iterator[str]:
    hardware, versions = benchmark["hardware"], benchmark["versions"]
    yield from (f"## [{benchmark['name']}]({name})", "", f"`{benchmark['command']}`", "")
    yield from ("| figure | value |", "|---|---|")
    yield from (f"| `{key}` | {_number(value)} |" for key, value in benchmark["figures"].items())
    yield ""
    yield (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, "
        f"accelerator: {hardware['accelerator'] or 'none'}; torch {versions['torch']}, "
        f"transformers {versions['transformers']}."
    )
    yield ""


def demo_table(benchmark: dict) -> str:
    """The front page's table: every system of the demo with HR@10 and NDCG@10."""
    systems: dict[str, dict[str, float]] = {}
    for row in benchmark["rows"]:
        systems.setdefault(row["system"], {})[row["metric"]] = row["value"]
    rows = [
        f"| {system} | {metrics['hr@10']:.4f} | {metrics['ndcg@10']:.4f} |"
        for system, metrics in systems.items()
    ]
    seconds = benchmark["figures"]["finetune_seconds"]
    note = f"Fine-tuning took {seconds:.0f} s in that run."
    table = "\n".join(["| system | HR@10 | NDCG@10 |", "|---|---|---|", *rows])
    return f"<!-- demo -->\n{table}\n\n{note}\n<!-- /demo -->"


def front_page(text: str, folder: Path) -> str:
    """The front page with the demo's table as measured."""
    demo = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    return DEMO.sub(lambda _: demo_table(demo), text)


def adapters_table(benchmark: dict) -> str:
    """The table of docs/adapters.md: every kind with what it trains, costs and reaches."""
    title = "| kind | trained in the backbone | in all | learning rate | s an epoch | NDCG@10 |"
    rows = [
        f"| `{row['adapter']}` | {row['parameters_in_backbone']:,} | {row['parameters_in_all']:,} "
        f"| {row['learning_rate']:g} | {row['seconds_per_epoch']:.0f} | {row['ndcg@10']:.4f} |"
        for row in benchmark["rows"]
    ]
    protocol, hardware = benchmark["protocol"], benchmark["hardware"]
    note = (
        f"Validation of {protocol['data']}, best epoch of {protocol['epochs']}, layers: "
        f"{protocol['layers']}; {protocol['threads']} thread(s) of {hardware['cpu']}, accelerator: "
        f"{hardware['accelerator'] or 'none'}."
    )
    table = "\n".join([title, "|---|---|---|---|---|---|", *rows])
    return f"<!-- adapters -->\n{table}\n\n{note}\n<!-- /adapters -->"


def adapters_page(text: str, folder: Path) -> str:
    """docs/adapters.md with its table as measured; as it is where nothing was measured yet."""
    path = folder / "adapters.json"
    if not path.is_file():
        return text
    measured = json.loads(path.read_text(encoding="utf-8"))
    return ADAPTER_ROWS.sub(lambda _: adapters_table(measured), text)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    FRONT.write_text(front_page(FRONT.read_text("utf-8"), OVERVIEW.parent), encoding="utf-8")
    filled = adapters_page(ADAPTERS.read_text("utf-8"), OVERVIEW.parent)
    ADAPTERS.write_text(filled, encoding="utf-8")
    OVERVIEW.write_text(overview(OVERVIEW.parent), encoding="utf-8")
