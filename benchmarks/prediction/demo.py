"""Run the demo from nothing and write its figures to docs/benchmarks/demo.json.

python -m benchmarks.prediction.demo [--output runs/demo_benchmark]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.harness import write_benchmark
from llm_influence.cli.demo_run import demo_config, run_demo


def main(output: Path, users: int) -> None:
    """Run the demo into ``output`` and record what it measured."""
    if output.exists():
        raise SystemExit(f"{output} is there: a run that is only opened again has no seconds")
    config = demo_config(["--output", str(output)])
    begun = time.perf_counter()
    result = run_demo(config, users=users)
    total = time.perf_counter() - begun
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    ours, knn, popularity = result.metrics
    write_benchmark(
        "docs/benchmarks/demo.json",
        name="demo",
        protocol=metrics["protocol"] | {"epoch": "chosen on validation", "measured": "test, once"},
        rows=[
            {"system": row["system"], "task": "next item", "metric": metric, "value": row[metric]}
            for row in result.metrics
            for metric in row
            if metric not in {"system", "split"}
        ],
        figures={
            "ndcg10": ours["ndcg@10"],
            "hr10": ours["hr@10"],
            "ndcg10_popularity": popularity["ndcg@10"],
            "ndcg10_itemknn": knn["ndcg@10"],
            "finetune_seconds": result.finetune_seconds,
            "explanations": result.explanations,
            "total_seconds": total,
            "trainable_parameters": metrics["trainable_parameters"],
        },
        seeds=[config.train.seed],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo_benchmark"))
    parser.add_argument("--users", type=int, default=24)
    options = parser.parse_args()
    main(options.output, options.users)
