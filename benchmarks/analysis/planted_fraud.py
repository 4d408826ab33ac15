"""Do explanations of a fraud detector name the events that raised the alarm?

    python -m benchmarks.analysis.planted_fraud --run runs/fraud

Trains configs/fraud.yaml on the generated accounts where the folder holds no run, explains every
fraud of the test split, and counts how many of the planted events are among as many top events.
Writes its rows and figures into docs/benchmarks/analysis_planted.json and leaves the other parts as
they are; benchmark_analysis_planted.py measures all parts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_part
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Feedback
from llm_influence.config.run import RunConfig
from llm_influence.datasets.fraud import ALARM, ALARM_ITEM, FraudTruth, make_fraud
from llm_influence.evaluation.bootstrap import bootstrap_interval
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

Row = dict[str, str | float]


def fraud_rows(folder: Path) -> Iterator[Row]:
    """Recall of each method and the detector's AUC, trained into ``folder`` if it is not there."""
    if not (folder / "metrics.json").exists():
        finetune(RunConfig.load(CONFIG, ["--output", str(folder)]), resume=True)
    run = Run.open(folder)
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    auc = measured["test"]["feedback"]["auc"]
    yield {"system": "detector", "task": TASK, "metric": "auc", "value": auc}
    _, truth = make_fraud()
    asked = run.examples("test", label=1)
    histories = [asked.history(row) for row in range(len(asked))]
    yield {"system": "log", "task": TASK, "metric": "frauds explained", "value": len(histories)}
    for method in METHODS:
        begun = time.perf_counter()
        found = recalls(Explainer(run.model, method, fidelity_masks=0), histories, truth)
        low, high = bootstrap_interval(found, asked.users)
        yield {
            "system": method,
            "task": TASK,
            "metric": "recall of planted events",
            "value": float(found.mean()),
            "low": low,
            "high": high,
            "seconds": time.perf_counter() - begun,
        }


def recalls(explainer: Explainer, histories: list[History], truth: FraudTruth) -> FloatArray:
    """(N,) share of each history's planted events among as many of its top events."""
    found = []
    influences = explainer.explain(histories, Feedback(ALARM_ITEM, ALARM))
    for history, influence in zip(histories, influences, strict=True):
        if history.query_time is None:
            raise ValueError("the moment of an alarm is part of its question")
        planted = truth.causes(history, history.query_time)
        kept = planted[len(planted) - len(influence.scores) :]  # older ones are not read
        top = np.argsort(-influence.scores, kind="stable")[: planted.sum()]
        found.append(kept[top].sum() / planted.sum())
    return np.array(found)


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
    torch.set_num_threads(options.threads)
    rows = list(fraud_rows(options.run))
    for row in rows:
        print(f"{row['system']:14}{row['metric']:28}{row['value']:10.4f}")
    protocol = {TASK: PROTOCOL}
    write_part(options.json, TASK, protocol=protocol, rows=rows, figures=fraud_figures(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/fraud"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/analysis_planted.json"))
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
