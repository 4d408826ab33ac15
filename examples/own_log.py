"""From a CSV file of a shop to a report, in half a minute on one core.

    python examples/own_log.py [FOLDER]

The small GRU trains in seconds. With backbone "minilm" a language model reads the items' texts.
"""

import csv
import random
import sys
from pathlib import Path

from llm_influence import (
    Explainer,
    InfluenceModel,
    Run,
    RunConfig,
    build_report,
    explain_batch,
    finetune,
    read_tables,
)

ITEMS = ["tent", "stove", "boots", "jersey", "ball", "goal", "novel", "lamp", "chair"]


def write_log(path: Path, users: int = 60) -> None:
    """Write a CSV file: people stay with camping, football or reading, and buy what they carted."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "product", "time", "action"])
        for user in range(users):
            shelf = ITEMS[user % 3 * 3 :][:3]
            for step in range(12):
                action = "purchase" if step % 4 == 3 else draw.choice(["view", "cart"])
                time = f"2026-03-{1 + step:02d}T{draw.randrange(24):02d}:00:00Z"
                rows.writerow([f"c{user}", draw.choice(shelf), time, action])


def main(folder: str = "runs/own_log") -> Path:
    """Train, explain, write the report; returns its path."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_log(out / "events.csv")
    names = {
        "user_id": "customer",
        "item_id": "product",
        "timestamp": "time",
        "behavior": "action",
    }
    config = RunConfig.model_validate(
        {
            "output": str(out / "run"),
            "data": {"source": str(out / "events.csv"), "columns": names, "duplicates": "drop"},
            "model": {"backbone": "gru", "adapter": {"kind": "full"}},
            "train": {"epochs": 5, "batch_size": 16},
            "evaluation": {"exclude_seen": False},
        }
    )
    run = Run.open(finetune(config).folder)
    model: InfluenceModel = run.model
    log = run.split.log
    print(Explainer(model, "shapley").explain(log["c7"]))
    explain_batch(Explainer(model), log, out / "influence")
    influences = read_tables(out / "influence")
    facts = run.report_facts(influences, metrics={})
    return build_report(influences=influences, facts=facts, out=out / "report.html")


if __name__ == "__main__":
    print(f"report: {main(*sys.argv[1:])}")
