"""Explanations of a fraud detector: are the events that raised the alarm on top?

    python -m benchmarks.analysis.planted_fraud

Trains configs/fraud.yaml on the generated accounts unless ``--work`` holds the run, explains every
fraud of the test split, and counts the true causes among as many top events. Writes its rows and
figures into analysis_planted.json; `benchmarks.analysis.planted` measures all parts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, arguments, row_of, started, write_part
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Feedback
from llm_influence.config.run import RunConfig
from llm_influence.datasets.fraud import ALARM, ALARM_ITEM, FraudTruth, make_fraud
from llm_influence.numerics import bootstrap_interval
from llm_influence.run import Run
from llm_influence.training.finetune import finetune
from llm_influence.types import FloatArray, History

TASK = "fraud"
MAIN = "leave_one_out"
"""The method of `fraud_recall`."""
METHODS = (MAIN, "recency", "random")
CONFIG = Path("configs/fraud.yaml")
PROTOCOL = {
    "log": "generated accounts, none of them real; see llm_influence.datasets.fraud",
    "asked": "every fraud of the test split, at the moment of its transfer",
    "fraud_recall": f"by {MAIN}: share of an alarm's planted events among as many top events",
    "fraud_auc": "of the detector, over all alarms of the test split",
}

PARSER = arguments(__doc__, "analysis_planted")


def fraud_rows(folder: Path) -> Iterator[Row]:
    """Recall of each method and the detector's AUC, trained into ``folder`` if it is not there."""
    if not (folder / "metrics.json").exists():
        finetune(RunConfig.load(CONFIG, ["--output", str(folder)]), resume=True)
    run = Run.open(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    yield row_of("detector", TASK, "auc", metrics["feedback"]["auc"])
    _, truth = make_fraud()
    frauds = run.examples("test", label=1)
    histories = [frauds.history(row) for row in range(len(frauds))]
    yield row_of("log", TASK, "frauds explained", len(histories))
    for method in METHODS:
        begun = time.perf_counter()
        shares = recalls(Explainer(run.model, method, fidelity_masks=0), histories, truth)
        ends = bootstrap_interval(shares, frauds.users)
        mean, seconds = float(shares.mean()), time.perf_counter() - begun
        yield row_of(method, TASK, "recall of planted events", mean, *ends, seconds=seconds)


def recalls(explainer: Explainer, histories: list[History], truth: FraudTruth) -> FloatArray:
    """(N,) share of each history's planted events among as many of its top events."""
    shares = []
    influences = explainer.explain(histories, Feedback(ALARM_ITEM, ALARM))
    for history, influence in zip(histories, influences, strict=True):
        if history.query_time is None:
            raise ValueError("an alarm has a query time")
        planted = truth.causes(history, history.query_time)
        kept = planted[len(planted) - len(influence.values) :]  # older ones are not read
        top = np.argsort(-influence.values, kind="stable")[: planted.sum()]
        shares.append(kept[top].sum() / planted.sum())
    return np.array(shares)


def fraud_figures(rows: list[Row]) -> dict[str, float]:
    """The figures of this part."""
    value = {
        (row["system"], row["metric"]): float(row["value"]) for row in rows if row["task"] == TASK
    }
    return {
        "fraud_recall": value[MAIN, "recall of planted events"],
        "fraud_recall_recency": value["recency", "recall of planted events"],
        "fraud_auc": value["detector", "auc"],
    }


def main(options: argparse.Namespace) -> None:
    """Measure this part and put it beside the others."""
    rows = list(fraud_rows(options.work / "fraud"))
    figures = fraud_figures(rows)
    write_part(options.output, TASK, protocol={TASK: PROTOCOL}, rows=rows, figures=figures)


if __name__ == "__main__":
    main(started(PARSER))
