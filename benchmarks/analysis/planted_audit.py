"""Audits of planted logs whose fairness is known: false alarms and unfairness found.

    python -m benchmarks.analysis.planted_audit [--work runs/planted_audit]

Verdicts are kept in the folder, so that what was broken off goes on. Writes its rows and figures
into docs/benchmarks/analysis_planted.json and leaves the other parts as they are;
benchmark_analysis_planted.py measures all parts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scipy import stats

from benchmarks.analysis.planted_tables import write_truth
from benchmarks.harness import write_part
from llm_influence.analysis.audit import AuditOptions, analyze_audit
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.synthetic import PlantedConfig
from llm_influence.datasets.planted import make_planted

LAW = {"users": 300, "clusters": 4, "temperature": 0.6, "max_events": 12, "group_share": 0.4}
"""Of every log, beside the defaults of `PlantedConfig`; two fifths of the users are of group b."""

FAIR = {
    "groups alike": {},
    "groups of other taste": {"group_taste": 0.4},
}
UNFAIR = {
    "scores shifted by 0.4": {"group_shift": 0.4},
    "scores shifted by 0.8": {"group_shift": 0.8},
}
"""A shift is added to the scores of a quarter of the items; one fresh purchase of an item adds 1 to
those like it."""
DETECTED = "scores shifted by 0.8"
SHUFFLES = 199
FIRST_SEED = 100
"""Logs of seeds 0 to 99 were looked at while the audit was written; these are fresh."""

PROTOCOL = {
    "law": LAW,
    "fair": FAIR,
    "unfair": UNFAIR,
    "shuffles": SHUFFLES,
    "first_seed": FIRST_SEED,
}

Row = dict[str, str | float]


def verdict(seed: int, options: dict[str, float]) -> dict[str, float]:
    """What the audit of one log says."""
    _, truth = make_planted(PlantedConfig(seed=seed, **LAW, **options))
    with tempfile.TemporaryDirectory() as place:
        asked = AuditOptions(("user:group",), shuffles=SHUFFLES, seed=seed)
        with InfluenceView(write_truth(truth, Path(place))) as view:
            (row,) = analyze_audit(view, asked).tables["verdict"].records
    named = ("unfair", "p_value", "p_gap", "user_share", "proxy_share", "told_by_history")
    return {name: float(row[name]) for name in named}


def verdicts(work: Path, name: str, options: dict[str, float], seeds: int) -> list[dict]:
    """Verdicts of all seeds, of which those in the folder are not asked again."""
    path = work / f"{name.replace(' ', '_')}_from_{FIRST_SEED}.jsonl"  # never those of other seeds
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    with path.open("a", encoding="utf-8") as file:
        while len(found) < seeds:
            found.append(verdict(FIRST_SEED + len(found), options))
            file.write(json.dumps(found[-1]) + "\n")
            file.flush()
            if len(found) % 10 == 0:
                print(f"{name}: {len(found)} of {seeds}", flush=True)
    return found[:seeds]


def audit_rows(work: Path, fair_seeds: int, unfair_seeds: int) -> Iterator[Row]:
    """Shares of verdicts "unfair", with intervals: false alarms of more logs, as they are few."""
    parts = (("false alarms", FAIR, fair_seeds), ("unfairness found", UNFAIR, unfair_seeds))
    for kind, cases, seeds in parts:
        for name, options in cases.items():
            found = verdicts(work, name, options, seeds)
            accused = sum(int(each["unfair"]) for each in found)
            interval = stats.binomtest(accused, seeds).proportion_ci(method="wilson")
            row: Row = {"system": "truth", "task": "audit"}
            ends = {"low": float(interval.low), "high": float(interval.high)}
            yield {**row, "metric": f"{kind}, {name}", "value": accused / seeds, **ends}
            differ = sum(each["p_gap"] <= AuditOptions(()).alpha for each in found)
            yield {**row, "metric": f"groups get other things, {name}", "value": differ / seeds}
            for share in ("user_share", "proxy_share"):
                mean = sum(each[share] for each in found) / seeds
                yield {**row, "metric": f"{share}, {name}", "value": mean}


def audit_figures(rows: list[Row]) -> dict[str, float]:
    """The worse rate of false alarms, and how much of the planted unfairness is found."""
    value = {row["metric"]: float(row["value"]) for row in rows if row["task"] == "audit"}
    return {
        "unfairness_detected": value[f"unfairness found, {DETECTED}"],
        "false_alarm_rate": max(value[f"false alarms, {name}"] for name in FAIR),
    }


def main(options: argparse.Namespace) -> None:
    """Measure this part and put it beside the others."""
    rows = list(audit_rows(options.work, options.fair_seeds, options.seeds))
    for row in rows:
        print(f"{row['metric']:60}{row['value']:8.3f}")
    logs = {"fair": options.fair_seeds, "unfair": options.seeds}
    protocol = {"audit": PROTOCOL, "audit_seeds": logs}
    write_part(options.json, "audit", protocol=protocol, rows=rows, figures=audit_figures(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/planted_audit"))
    parser.add_argument("--fair-seeds", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/analysis_planted.json"))
    main(parser.parse_args())
