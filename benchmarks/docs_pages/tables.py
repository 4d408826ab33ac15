"""Write the documentation's tables of figures from docs/benchmarks/*.json.

    python -m benchmarks.docs_pages.tables

Fills docs/results/index.md and the tables of the front page, docs/how-to/choose_an_adapter.md,
docs/how-to/training_options.md, learning.md, faithfulness.md, attribution.md and planted_truth.md; a test holds
them in step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.docs_pages.faithfulness import PAGE as FAITHFULNESS
from benchmarks.docs_pages.faithfulness import faithfulness_page

FRONT = Path("README.md")
OVERVIEW = Path("docs/results/index.md")
ADAPTERS = Path("docs/how-to/choose_an_adapter.md")
TRAINING = Path("docs/how-to/training_options.md")
ATTRIBUTION = Path("docs/concepts/influence.md")
LEARNING = Path("docs/how-to/ways_of_learning.md")
PLANTED = Path("docs/how-to/synthetic_truth.md")
DEMO = re.compile(r"<!-- demo -->.*<!-- /demo -->", re.DOTALL)

ADAPTER_ROWS = re.compile(r"<!-- adapters -->.*<!-- /adapters -->", re.DOTALL)
SPEED = re.compile(r"<!-- speed -->.*<!-- /speed -->", re.DOTALL)
ESTIMATORS = re.compile(r"<!-- shapley estimators -->.*<!-- /shapley estimators -->", re.DOTALL)
LEARNED = re.compile(r"<!-- learning -->.*<!-- /learning -->", re.DOTALL)
LOW_LABELS = re.compile(r"<!-- low labels -->.*<!-- /low labels -->", re.DOTALL)
RECOVERED = re.compile(r"<!-- law recovered -->.*<!-- /law recovered -->", re.DOTALL)
ABLATIONS = re.compile(r"<!-- ablations -->.*<!-- /ablations -->", re.DOTALL)


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
    """The table of docs/how-to/choose_an_adapter.md: every kind with what it trains, costs and reaches."""
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
    """docs/how-to/choose_an_adapter.md with its table as measured; as it is where nothing was measured yet."""
    path = folder / "adapters.json"
    if not path.is_file():
        return text
    measured = json.loads(path.read_text(encoding="utf-8"))
    return ADAPTER_ROWS.sub(lambda _: adapters_table(measured), text)


def speed_tables(benchmark: dict) -> str:
    """Tables of docs/how-to/training_options.md: settings with their speed, and where a step's time goes."""
    rows = [row for row in benchmark["rows"] if "region" not in row]
    parts = [row for row in benchmark["rows"] if "region" in row]
    speed = [
        f"| {row['task']} | {row['precision']} | {row['layers']} | {row['tokens_per_second']:,.0f} "
        f"| {row['bare_tokens_per_second']:,.0f} | {row['ratio_to_bare_backbone']:.2f} "
        f"| {row['ratio_of_operations']:.2f} | {row['ratio_to_bare_transformers']:.2f} "
        f"| {row['padding_share']:.1%} |"
        for row in rows
    ]
    profile = [
        f"| {row['region']} | {row['milliseconds']:.1f} | {row['share']:.1%} |" for row in parts
    ]
    title = (
        "| setting | precision | layers | tokens/s | bare | ratio | of operations "
        "| to bare transformers | padding |"
    )
    protocol, hardware = benchmark["protocol"], benchmark["hardware"]
    note = (
        f"{protocol['threads']} thread(s) of {hardware['cpu']}, accelerator: "
        f"{hardware['accelerator'] or 'none'}; {protocol['batch_size']} histories of "
        f"{protocol['max_events']} events a step; {protocol['blocks']}; seconds "
        f"{protocol['seconds']}."
    )
    tables = [title, "|---|---|---|---|---|---|---|---|---|", *speed, "", note, ""]
    tables += ["| part of a step | ms | share |", "|---|---|---|", *profile]
    return "\n".join(["<!-- speed -->", *tables, "<!-- /speed -->"])


def ablations_table(benchmark: dict) -> str:
    """The table of docs/how-to/training_options.md: one changed setting a row, beside the baseline."""
    title = "| setting | NDCG@10 | 95% interval | difference | NLL | difference | s |"
    rows = [
        f"| {row['system']} | {row['value']:.4f} | {row['low']:.4f} to {row['high']:.4f} "
        f"| {_difference(row, 'ndcg', 4)} | {row['nll']:.3f} | {_difference(row, 'nll', 3)} "
        f"| {row['seconds']:.0f} |"
        for row in benchmark["rows"]
    ]
    note = f"Baseline: {benchmark['protocol']['baseline']}. {benchmark['protocol']['rows']}."
    table = "\n".join([title, "|---|---|---|---|---|---|---|", *rows])
    return f"<!-- ablations -->\n{table}\n\n{note}\n<!-- /ablations -->"


def _difference(row: dict, metric: str, digits: int) -> str:
    """A difference with its interval; in bold where that leaves out zero."""
    key = f"{metric}_difference"
    if key not in row:
        return ""
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    shown = f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{shown}**" if low > 0 or high < 0 else shown


def training_page(text: str, folder: Path) -> str:
    """docs/how-to/training_options.md with its tables as measured; as it is where nothing was measured yet."""
    places = {
        "training_speed": (SPEED, speed_tables),
        "ablations": (ABLATIONS, ablations_table),
    }
    return _filled(text, folder, places)


def learning_table(benchmark: dict) -> str:
    """The table of docs/how-to/ways_of_learning.md: one block a row, beside the same run without it."""
    rows = [
        f"| {row['system']} | {row['value']:.4f} | {row['low']:.4f} to {row['high']:.4f} "
        f"| {_difference(row, 'ndcg', 4)} | {row.get('off', '')} | {row['seconds']:.0f} |"
        for row in benchmark["rows"]
    ]
    title = "| block | NDCG@10 | 95% interval | difference | from | s |"
    protocol, seeds = benchmark["protocol"], ", ".join(map(str, benchmark["seeds"]))
    note = f"Validation; {protocol['baseline']}, seeds {seeds}; {protocol['interval']}."
    table = "\n".join([title, "|---|---|---|---|---|---|", *rows])
    return f"<!-- learning -->\n{table}\n\n{note}\n<!-- /learning -->"


def low_labels_table(benchmark: dict) -> str:
    """The second table of docs/how-to/ways_of_learning.md: few labels."""
    rows = [
        f"| {row['system']} | {row['value']:.4f} | {row['low']:.4f} to {row['high']:.4f} "
        f"| {_difference(row, 'auc', 4)} | {row['gauc']:.4f} | {row['guessed_labels']:,.0f} |"
        for row in benchmark["rows"]
    ]
    title = "| learned from | AUC | 95% interval | difference | GAUC | labels guessed |"
    protocol = benchmark["protocol"]
    note = f"{protocol['task']} {protocol['labels']}. {protocol['interval']}."
    table = "\n".join([title, "|---|---|---|---|---|---|", *rows])
    return f"<!-- low labels -->\n{table}\n\n{note}\n<!-- /low labels -->"


def learning_page(text: str, folder: Path) -> str:
    """docs/how-to/ways_of_learning.md with its tables as measured; as it is where nothing was measured yet."""
    places = {
        "learning_ablations": (LEARNED, learning_table),
        "low_labels": (LOW_LABELS, low_labels_table),
    }
    return _filled(text, folder, places)


def _filled(
    text: str, folder: Path, places: dict[str, tuple[re.Pattern, Callable[[dict], str]]]
) -> str:
    """A page with the tables of those benchmarks that have been measured."""
    for name, (place, make) in places.items():
        path = folder / f"{name}.json"
        if path.is_file():
            table = make(json.loads(path.read_text(encoding="utf-8")))
            text = place.sub(lambda _, table=table: table, text)
    return text


def estimators_table(benchmark: dict) -> str:
    """The median error of every estimator of Shapley values, by evaluations."""
    systems: dict[str, dict[int, float]] = {}
    for row in benchmark["rows"]:
        systems.setdefault(row["system"], {})[row["evaluations"]] = row["value"]
    evaluations = list(next(iter(systems.values())))
    head = [
        "| estimator | " + " | ".join(f"{number} evaluations" for number in evaluations) + " |",
        "|---" * (len(evaluations) + 1) + "|",
    ]
    rows = [
        f"| {name} | " + " | ".join(f"{errors[number]:.3f}" for number in evaluations) + " |"
        for name, errors in systems.items()
    ]
    lines = ["<!-- shapley estimators -->", *head, *rows, "<!-- /shapley estimators -->"]
    return "\n".join(lines)


def attribution_page(text: str, folder: Path) -> str:
    """docs/concepts/influence.md with its table as measured; as it is where nothing was measured yet."""
    path = folder / "shapley_estimators.json"
    if not path.is_file():
        return text
    measured = json.loads(path.read_text(encoding="utf-8"))
    return ESTIMATORS.sub(lambda _: estimators_table(measured), text)


def recovered_table(benchmark: dict) -> str:
    """How far off the law is that each method's scores speak of."""
    systems: dict[str, dict[str, float]] = {}
    for row in benchmark["rows"]:
        if row["task"] == "law recovered":
            systems.setdefault(row["system"], {})[row["metric"]] = row["value"]
    head = [
        "| method (removal) | half-life off, read as single removals | half-life off, own question "
        "| largest weight off |",
        "|---|---|---|---|",
    ]
    rows = [
        f"| {name} | {off['half_life_error as if alone']:.1%} | {off['half_life_error']:.1%} "
        f"| {off['behavior_weight_error']:.3f} |"
        for name, off in systems.items()
    ]
    return "\n".join(["<!-- law recovered -->", *head, *rows, "<!-- /law recovered -->"])


def planted_page(text: str, folder: Path) -> str:
    """docs/how-to/synthetic_truth.md with its table as measured; as it is where nothing was measured yet."""
    path = folder / "planted_truth.json"
    if not path.is_file():
        return text
    measured = json.loads(path.read_text(encoding="utf-8"))
    return RECOVERED.sub(lambda _: recovered_table(measured), text)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    FRONT.write_text(front_page(FRONT.read_text("utf-8"), OVERVIEW.parent), encoding="utf-8")
    filled = adapters_page(ADAPTERS.read_text("utf-8"), OVERVIEW.parent)
    ADAPTERS.write_text(filled, encoding="utf-8")
    filled = training_page(TRAINING.read_text("utf-8"), OVERVIEW.parent)
    TRAINING.write_text(filled, encoding="utf-8")
    LEARNING.write_text(
        learning_page(LEARNING.read_text("utf-8"), OVERVIEW.parent), encoding="utf-8"
    )
    filled = faithfulness_page(FAITHFULNESS.read_text("utf-8"), OVERVIEW.parent)
    FAITHFULNESS.write_text(filled, encoding="utf-8")
    filled = attribution_page(ATTRIBUTION.read_text("utf-8"), OVERVIEW.parent)
    ATTRIBUTION.write_text(filled, encoding="utf-8")
    filled = planted_page(PLANTED.read_text("utf-8"), OVERVIEW.parent)
    PLANTED.write_text(filled, encoding="utf-8")
    OVERVIEW.write_text(overview(OVERVIEW.parent), encoding="utf-8")
