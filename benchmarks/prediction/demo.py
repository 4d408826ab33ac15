"""The demo from nothing: docs/benchmarks/demo.json.

python -m benchmarks.prediction.demo
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.harness import arguments, row_of, started, write_benchmark
from llm_influence.cli.demo_run import demo_config, run_demo

PARSER = arguments(__doc__, "demo", threads=None, users=(24, "explained in the report"))


def main(options: argparse.Namespace) -> None:
    """Run the demo and write what it measured."""
    if options.work.exists():
        raise SystemExit(f"{options.work} exists: a finished demo has no seconds. Delete it")
    config = demo_config(["--output", str(options.work)])
    begun = time.perf_counter()
    result = run_demo(config, users=options.users)
    total = time.perf_counter() - begun
    metrics = json.loads((options.work / "metrics.json").read_text(encoding="utf-8"))
    ndcg = {row["system"]: row["ndcg@10"] for row in result.metrics}
    ours = result.metrics[0]
    (knn,) = (value for name, value in ndcg.items() if name.startswith("item-kNN"))
    write_benchmark(
        options.output,
        name="demo",
        protocol=metrics["protocol"] | {"epoch": "chosen on validation", "measured": "test, once"},
        rows=[
            row_of(row["system"], "next item", metric, row[metric])
            for row in result.metrics
            for metric in row
            if metric not in {"system", "split"}
        ],
        figures={
            "ndcg10": ours["ndcg@10"],
            "hr10": ours["hr@10"],
            "ndcg10_popularity": ndcg["popularity"],
            "ndcg10_itemknn": knn,
            "ndcg10_linear": ndcg["linear transitions"],
            "ndcg10_memory_alone": ndcg["memory alone"],
            "finetune_seconds": result.finetune_seconds,
            "explanations": result.explanations,
            "total_seconds": total,
            "trainable_parameters": metrics["trainable_parameters"],
        },
        seeds=[config.train.seed],
    )


if __name__ == "__main__":
    main(started(PARSER))
