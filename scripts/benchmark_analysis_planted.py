"""Does the analysis of influence tables find the law of a planted log?

    python scripts/benchmark_analysis_planted.py --model runs/planted_truth/model

Asks tables of exact true influences, and tables that a trained model's explanations make (the
model of benchmark_planted_truth.py, for users it never saw). Writes
docs/benchmarks/analysis_planted.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from benchmark_json import write_benchmark
from benchmark_planted_truth import LAW
from planted_fraud import PROTOCOL as FRAUD
from planted_fraud import fraud_figures, fraud_rows
from planted_tables import write_explained, write_truth
from scipy import stats

from llm_influence.analysis.factors import FactorOptions, analyze_factors
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.config import PlantedConfig
from llm_influence.data.law import Law
from llm_influence.data.planted import Truth, generate
from llm_influence.modeling.model import InfluenceModel

MATCH = "match:cluster"
Row = dict[str, str | float]


def factor_rows(tables: Path, law: Law, system: str) -> Iterator[Row]:
    """Weights of behaviours as `analyze factors` finds them, against the law's."""
    begun = time.perf_counter()
    with InfluenceView(tables) as view:
        found = analyze_factors(view, FactorOptions(match=MATCH)).tables["weights"].records
    seconds = time.perf_counter() - begun
    row = {"system": system, "task": "factors", "seconds": seconds}
    true = dict(zip(law.behaviors, law.weights / np.abs(law.weights).max(), strict=True))
    for record in found:
        interval = {"low": record["low"], "high": record["high"]}
        name = f"weight of {record['behavior']}"
        yield {**row, "metric": name, "value": record["weight"], **interval}
        yield {**row, "metric": f"true {name}", "value": float(true[record["behavior"]])}
    pairs = np.array([(record["weight"], true[record["behavior"]]) for record in found])
    rank = float(stats.spearmanr(*pairs.T).statistic)
    # Relative to the largest weight, so that a distractor's, which is zero, counts too.
    error = float(np.abs(pairs[:, 0] - pairs[:, 1]).max())
    yield {**row, "metric": "behavior_rank_correlation", "value": rank}
    yield {**row, "metric": "weight_error", "value": error}


def factor_figures(rows: list[Row]) -> dict[str, float]:
    """Of the model's tables, and with `_exact` of the truth's."""
    found = {}
    for metric in ("behavior_rank_correlation", "weight_error"):
        for system, key in (("model", metric), ("truth", f"{metric}_exact")):
            (found[key],) = [
                float(row["value"])
                for row in rows
                if row["metric"] == metric and row["system"] == system
            ]
    return found


def main(options: argparse.Namespace) -> None:
    """Plant, explain, analyse, hold against the law, write."""
    torch.set_num_threads(options.threads)
    # Users of the same law whom the model was not trained on.
    config = PlantedConfig(seed=options.seed, users=options.users, user_seed=1, **LAW)
    _, truth = generate(config)
    with tempfile.TemporaryDirectory() as place:
        rows = list(measured(options, truth, Path(place)))
    rows += fraud_rows(options.fraud)
    for row in rows:
        print(f"{row['system']:8}{row['metric']:32}{row['value']:10.4f}")
    write_benchmark(
        options.json,
        name="analysis_planted",
        protocol={
            "law": config.model_dump(mode="json"),
            "truth": "exact influence of every event, no model",
            "model": f"{options.method} of the model of planted_truth.json",
            "fraud": FRAUD,
            "weight_error": "largest distance of a behaviour's weight from the law's, the largest "
            "weight being 1",
        },
        rows=rows,
        figures=factor_figures(rows) | fraud_figures(rows),
        seeds=[options.seed],
    )


def measured(options: argparse.Namespace, truth: Truth, folder: Path) -> Iterator[Row]:
    """All rows, of the truth's tables and of the model's."""
    yield from factor_rows(write_truth(truth, folder / "truth"), truth.law, "truth")
    explainer = Explainer(
        InfluenceModel.from_pretrained(options.model), options.method, fidelity_masks=0
    )
    tables = write_explained(truth, explainer, folder / "model")
    yield from factor_rows(tables, truth.law, "model")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--method", default="leave_one_out")
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/analysis_planted.json"))
    parser.add_argument("--seed", type=int, default=11, help="of the law the model was trained on")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fraud", type=Path, default=Path("runs/fraud"), help="its run folder")
    main(parser.parse_args())
