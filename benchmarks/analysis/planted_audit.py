"""Audits of generated logs with known fairness: false alarms and unfairness found.

    python -m benchmarks.analysis.planted_audit

Writes its rows and figures into docs/benchmarks/analysis_planted.json; the other parts stay.
`benchmarks.analysis.planted` measures all parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scipy import stats

from benchmarks.analysis.planted_tables import write_truth
from benchmarks.harness import (
    Results,
    Row,
    arguments,
    row_of,
    started,
    write_part,
)
from llm_influence.analysis.audit import analyze_audit
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import AuditOptions
from llm_influence.config.data import PlantedConfig
from llm_influence.datasets.planted import make_planted

PROCESS = {"users": 300, "clusters": 4, "temperature": 0.6, "max_events": 12, "group_share": 0.4}
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
    "process": PROCESS,
    "fair": FAIR,
    "unfair": UNFAIR,
    "shuffles": SHUFFLES,
    "first_seed": FIRST_SEED,
}

PARSER = arguments(
    __doc__,
    "analysis_planted",
    threads=None,
    fair_seeds=(500, "fair logs of each kind"),
    unfair_seeds=(100, "unfair logs of each kind"),
)


def verdict(seed: int, options: dict[str, float]) -> dict[str, float]:
    """The verdict of the audit of one log."""
    _, truth = make_planted(PlantedConfig(seed=seed, **PROCESS, **options))
    with tempfile.TemporaryDirectory() as place:
        audit = AuditOptions(("user:group",), shuffles=SHUFFLES, seed=seed)
        with InfluenceView(write_truth(truth, Path(place))) as view:
            (row,) = analyze_audit(view, audit).tables["verdict"].records
    named = ("unfair", "p_value", "p_difference", "user_share", "proxy_share", "history_auc")
    return {name: float(row[name]) for name in named}


def audit_rows(results: Results, fair_seeds: int, unfair_seeds: int) -> Iterator[Row]:
    """Shares of verdicts "unfair", with intervals."""
    parts = (("false alarms", FAIR, fair_seeds), ("unfairness found", UNFAIR, unfair_seeds))
    for kind, cases, count in parts:
        for name, options in cases.items():
            verdicts = [
                results.keep(f"{name}, seed {seed}", lambda s=seed, o=options: verdict(s, o))
                for seed in range(FIRST_SEED, FIRST_SEED + count)
            ]
            accused = sum(int(each["unfair"]) for each in verdicts)
            interval = stats.binomtest(accused, count).proportion_ci(method="wilson")
            ends = (float(interval.low), float(interval.high))
            yield row_of("truth", "audit", f"{kind}, {name}", accused / count, *ends)
            differ = sum(each["p_gap"] <= AuditOptions(()).alpha for each in verdicts) / count
            yield row_of("truth", "audit", f"groups get other things, {name}", differ)
            for share in ("user_share", "proxy_share"):
                mean = sum(each[share] for each in verdicts) / count
                yield row_of("truth", "audit", f"{share}, {name}", mean)


def audit_figures(rows: list[Row]) -> dict[str, float]:
    """The worse rate of false alarms, and how much of the planted unfairness is found."""
    value = {row["metric"]: float(row["value"]) for row in rows if row["task"] == "audit"}
    return {
        "unfairness_detected": value[f"unfairness found, {DETECTED}"],
        "false_alarm_rate": max(value[f"false alarms, {name}"] for name in FAIR),
    }


def results_of_audits(options: argparse.Namespace) -> Results:
    """Verdicts on disk."""
    return Results(options.work / "audits.jsonl", PROTOCOL, resume=options.resume)


def main(options: argparse.Namespace) -> None:
    """Measure this part and put it beside the others."""
    rows = list(audit_rows(results_of_audits(options), options.fair_seeds, options.unfair_seeds))
    logs = {"fair": options.fair_seeds, "unfair": options.unfair_seeds}
    protocol = {"audit": PROTOCOL, "audit_seeds": logs}
    write_part(options.output, "audit", protocol=protocol, rows=rows, figures=audit_figures(rows))


if __name__ == "__main__":
    main(started(PARSER))
