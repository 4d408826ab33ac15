"""Builders of the tables of the docs: from the content of a benchmark file to Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from llm_influence.faithfulness.metrics import METRICS
from llm_influence.faithfulness.result import ARROWS

SHOWN = (
    *("lds", "deletion_auc", "insertion_auc", "abpc", "comprehensiveness_aopc"),
    *("counterfactual_share", "randomisation", "evaluations"),
)
"""Metrics of the table `measured`; the JSON file holds all."""


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]], *notes: str) -> str:
    """A table with notes below it."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join([*lines, *(line for note in notes for line in ("", note))])


def by_system(benchmark: dict, column: str, task: str | None = None) -> dict[str, dict]:
    """Values of the rows: system -> column -> value."""
    systems: dict[str, dict] = {}
    for row in benchmark["rows"]:
        if task in (None, row["task"]):
            systems.setdefault(row["system"], {})[row[column]] = row["value"]
    return systems


def _machine(benchmark: dict) -> str:
    protocol, hardware = benchmark["protocol"], benchmark["hardware"]
    return (
        f"{protocol['threads']} thread(s) of {hardware['cpu']}, accelerator: "
        f"{hardware['accelerator'] or 'none'}"
    )


# --- the tables --------------------------------------------------------------------------------


def demo(benchmark: dict) -> str:
    """Every system of the demo with HR@10 and NDCG@10."""
    rows = [
        (system, f"{metrics['hr@10']:.4f}", f"{metrics['ndcg@10']:.4f}")
        for system, metrics in by_system(benchmark, "metric").items()
    ]
    note = f"Fine-tuning took {benchmark['figures']['finetune_seconds']:.0f} s in that run."
    return markdown(["system", "HR@10", "NDCG@10"], rows, note)


def adapters(benchmark: dict) -> str:
    """Every kind of adapter with what it trains, costs and reaches."""
    heads = ["kind", "trained in the backbone", "in all", "learning rate"]
    rows = [
        (
            f"`{row['adapter']}`",
            f"{row['parameters_in_backbone']:,}",
            f"{row['parameters_in_all']:,}",
            f"{row['learning_rate']:g}",
            f"{row['seconds_per_epoch']:.0f}",
            f"{row['ndcg@10']:.4f}",
        )
        for row in benchmark["rows"]
    ]
    protocol = benchmark["protocol"]
    note = (
        f"Validation of {protocol['data']}, best epoch of {protocol['epochs']}, layers: "
        f"{protocol['layers']}; {_machine(benchmark)}."
    )
    return markdown([*heads, "s an epoch", "NDCG@10"], rows, note)


def speed(benchmark: dict) -> str:
    """Settings with their speed of training, and the parts of a step."""
    rows = [
        (
            *(row["task"], row["precision"], row["layers"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['bare_tokens_per_second']:,.0f}",
            f"{row['ratio_to_bare_backbone']:.2f}",
            f"{row['ratio_of_operations']:.2f}",
            f"{row['ratio_to_bare_transformers']:.2f}",
            f"{row['padding_share']:.1%}",
        )
        for row in benchmark["rows"]
        if "region" not in row
    ]
    parts = [
        (row["region"], f"{row['milliseconds']:.1f}", f"{row['share']:.1%}")
        for row in benchmark["rows"]
        if "region" in row
    ]
    heads = ["setting", "precision", "layers", "tokens/s", "bare", "ratio", "of operations"]
    protocol = benchmark["protocol"]
    note = (
        f"{_machine(benchmark)}; {protocol['batch_size']} histories of "
        f"{protocol['max_events']} events a step; {protocol['blocks']}; seconds "
        f"{protocol['seconds']}."
    )
    profile = markdown(["part of a step", "ms", "share"], parts)
    return markdown([*heads, "to bare transformers", "padding"], rows, note, profile)


def ablations(benchmark: dict) -> str:
    """One changed setting a row, beside the baseline."""
    rows = [
        (
            *(row["system"], f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"),
            *(_difference(row, "ndcg", 4), f"{row['nll']:.3f}", _difference(row, "nll", 3)),
            f"{row['seconds']:.0f}",
        )
        for row in benchmark["rows"]
    ]
    heads = ["setting", "NDCG@10", "95% interval", "difference", "NLL", "difference", "s"]
    protocol = benchmark["protocol"]
    return markdown(heads, rows, f"Baseline: {protocol['baseline']}. {protocol['rows']}.")


def learning(benchmark: dict) -> str:
    """One block of learning a row, beside the same run without it."""
    rows = [
        (
            *(row["system"], f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"),
            *(_difference(row, "ndcg", 4), row.get("off", ""), f"{row['seconds']:.0f}"),
        )
        for row in benchmark["rows"]
    ]
    protocol, seeds = benchmark["protocol"], ", ".join(map(str, benchmark["seeds"]))
    note = f"Validation; {protocol['baseline']}, seeds {seeds}; {protocol['interval']}."
    heads = ["block", "NDCG@10", "95% interval", "difference", "from", "s"]
    return markdown(heads, rows, note)


def low_labels(benchmark: dict) -> str:
    """Learning with few labels."""
    rows = [
        (
            *(row["system"], f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"),
            *(_difference(row, "auc", 4), f"{row['gauc']:.4f}", f"{row['guessed_labels']:,.0f}"),
        )
        for row in benchmark["rows"]
    ]
    protocol = benchmark["protocol"]
    heads = ["learned from", "AUC", "95% interval", "difference", "GAUC", "labels guessed"]
    note = f"Task: {protocol['task']}. Labels: {protocol['labels']}. {protocol['interval']}."
    return markdown(heads, rows, note)


def estimators(benchmark: dict) -> str:
    """The median error of every estimator of Shapley values, by events and evaluations."""
    systems: dict[tuple[int, str], dict[int, dict]] = {}
    for row in benchmark["rows"]:
        key = (row["events"], row["system"])
        systems.setdefault(key, {})[row["evaluations"]] = row
    numbers = sorted({row["evaluations"] for row in benchmark["rows"]})
    rows = [
        (
            events,
            name,
            *(f"{found[n]['value']:.3f}" if n in found else "" for n in numbers),
            f"{found[200]['seconds']:.2f}" if 200 in found else "",
        )
        for (events, name), found in systems.items()
    ]
    heads = ["events", "estimator", *(f"{number} evaluations" for number in numbers)]
    return markdown([*heads, "seconds at 200"], rows)


def recovered(benchmark: dict) -> str:
    """How far each method's scores are from the generating process."""
    rows = [
        (
            name,
            f"{off['half_life_error as if alone']:.1%}",
            f"{off['half_life_error']:.1%}",
            f"{off['behavior_weight_error']:.3f}",
        )
        for name, off in by_system(benchmark, "metric", "process recovered").items()
    ]
    heads = ["method (removal)", "half-life error, read as single removals"]
    return markdown([*heads, "half-life error, same question", "largest weight error"], rows)


def metrics(_: dict) -> str:
    """Every faithfulness metric: equation, which way is better, paper, when it misleads."""
    rows = [
        (
            f"`{metric.name}` {ARROWS[metric.better]}",
            *(_safe(metric.equation), metric.paper, _safe(metric.limitations)),
        )
        for metric in METRICS.values()
    ]
    return markdown(["metric", "equation", "paper", "limitations"], rows)


def measured(benchmark: dict) -> str:
    """Faithfulness of each method under the first removal: mean and interval."""
    protocol = benchmark["protocol"]
    removal = protocol["removal"].partition(",")[0]
    cells: dict[str, dict[str, str]] = {}
    for row in benchmark["rows"]:
        if row["task"] == f"removal {removal}" and row["metric"] in SHOWN:
            cells.setdefault(row["system"], {})[row["metric"]] = _cell(row)
    rows = [(f"`{method}`", *(row.get(n, "") for n in SHOWN)) for method, row in cells.items()]
    named = [f"{n} {ARROWS[METRICS[n].better]}" if n in METRICS else n for n in SHOWN]
    note = (
        f"{protocol['data']}: {protocol['histories']}. Target: {protocol['target']}. Removal: "
        f"{protocol['removal']}; {protocol['budget']}. Recommended beforehand: "
        f"`{benchmark['figures']['recommended']}`. Mean and 95% bootstrap interval over users."
    )
    lines = "\n".join(f"- {line}" for line in protocol["misleading"])
    return markdown(
        ["method", *named], rows, note, *(["Not better than a baseline:", lines] * bool(lines))
    )


def _cell(row: dict) -> str:
    if row["mean"] is None:
        return "n/a"
    if row["metric"] == "evaluations":
        return f"{row['mean']:.0f}"
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _safe(text: str) -> str:
    """A vertical bar would end the cell."""
    return text.replace("|", "\\|")


def _difference(row: dict, metric: str, digits: int) -> str:
    """A difference with its interval; in bold where that leaves out zero."""
    key = f"{metric}_difference"
    if key not in row:
        return ""
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    shown = f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{shown}**" if low > 0 or high < 0 else shown


# --- tables that show rows as they are ---------------------------------------------------------


def listing(benchmark: dict, columns: dict[str, tuple[str, str]], task: str = "") -> str:
    """One line a row: by head of a column, the key of the row and the format of its value."""
    rows = [
        [
            form.format(row[key]) if row.get(key) is not None else ""
            for key, form in columns.values()
        ]
        for row in benchmark["rows"]
        if task in row["task"]
    ]
    return markdown(list(columns), rows)


def pivot(benchmark: dict, metric: str, form: str, keys: Sequence[str] = ("task",)) -> str:
    """One line a system, one column a task (or the values of other keys), for one metric."""
    chosen = [row for row in benchmark["rows"] if row["metric"] == metric and "value" in row]
    heads: dict[tuple, None] = {tuple(row[key] for key in keys): None for row in chosen}
    cells: dict[str, dict[tuple, str]] = {}
    for row in chosen:
        place = tuple(row[key] for key in keys)
        cells.setdefault(row["system"], {})[place] = form.format(row["value"])
    rows = [(name, *(line.get(head, "") for head in heads)) for name, line in cells.items()]
    named = [
        ", ".join(str(part) if key == "task" else f"{part:,} {key}" for key, part in pairs)
        for pairs in (zip(keys, head, strict=True) for head in heads)
    ]
    return markdown(["system", *named], rows)


def comparison(benchmark: dict, metric: str) -> str:
    """One line a system on the test split: the mean over seeds with its interval."""
    systems: dict[str, dict] = {}
    for row in benchmark["rows"]:
        if row["metric"] == metric and row.get("split") == "test":
            systems[row["system"]] = min(
                systems.get(row["system"], row), row, key=lambda one: "seed" in one
            )
    rows = [
        (
            *(name, f"{row['value']:.4f}"),
            f"{row['low']:.4f} to {row['high']:.4f}" if "low" in row else "",
            row.get("seeds", 1),
        )
        for name, row in systems.items()
    ]
    return markdown(["system", metric, "95% interval", "seeds"], rows)


def figures(benchmark: dict, systems: dict[str, str], columns: dict[str, str], form: str) -> str:
    """One line a system, one column a figure: names of figures are column_system."""
    values = benchmark["figures"]
    rows = [
        (system, *(form.format(values[f"{figure}_{name}"]) for figure in columns.values()))
        for system, name in systems.items()
    ]
    return markdown(["system", *columns], rows)


def figure_table(benchmark: dict) -> str:
    """All figures of a file."""
    rows = [(f"`{key}`", _number(value)) for key, value in benchmark["figures"].items()]
    return markdown(["figure", "value"], rows)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


SPEED = {
    "system": ("system", "{}"),
    "task": ("task", "{}"),
    "measured": ("metric", "{}"),
    "value": ("value", "{:.3g}"),
    "evaluations": ("evaluations", "{:.0f}"),
    "relative RMSE": ("error", "{:.3f}"),
    "reached": ("reached", "{}"),
}
READERS = {
    "system": ("system", "{}"),
    "file": ("task", "{}"),
    "rows a second": ("value", "{:,.0f}"),
    "lowest": ("low", "{:,.0f}"),
    "highest": ("high", "{:,.0f}"),
    "seconds": ("seconds", "{:.1f}"),
    "peak GiB": ("peak_gib", "{:.2f}"),
}
RENDERING = {
    "system": ("system", "{}"),
    "case": ("task", "{}"),
    "events a second": ("value", "{:,.0f}"),
    "seconds": ("seconds", "{:.2f}"),
    "processor seconds": ("cpu_seconds", "{:.2f}"),
}
BATCH = {"method": ("system", "{}"), "explanations a second": ("value", "{:.2f}")}
CACHE = {
    "reading": ("system", "{}"),
    "task": ("task", "{}"),
    "seconds, median of 15": ("value", "{:.3f}"),
    "fastest": ("low", "{:.3f}"),
}
CONTINUAL = {
    "model": ("system", "{}"),
    "examples": ("task", "{}"),
    "NDCG@10": ("value", "{:.4f}"),
    "95% interval, low": ("low", "{:.4f}"),
    "high": ("high", "{:.4f}"),
    "seconds": ("seconds", "{:.0f}"),
}
EVENT_DROPOUT = {
    "run": ("system", "{}"),
    "examples": ("task", "{}"),
    "metric": ("metric", "{}"),
    "value": ("value", "{:.4f}"),
    "difference from rate 0": ("difference", "{:+.4f}"),
    "95% interval, low": ("low", "{:+.4f}"),
    "high": ("high", "{:+.4f}"),
}
DEBIASING = {
    "NDCG@10, equal exposure": "ndcg10",
    "NDCG@10, confounded": "ndcg10_confounded",
    "divergence from the process, nats": "divergence",
    "rank correlation, item": "influence_spearman",
    "rank correlation, contrast": "contrast_spearman",
}
WEIGHTS = {
    "none": "none",
    "popularity, power 0.5": "popularity_half",
    "popularity, power 1": "popularity",
    "true exposure": "exposure",
}
