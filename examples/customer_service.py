"""Which step of a ticket makes an escalation likely? On generated tickets of a help desk.

python examples/customer_service.py [FOLDER]
"""

import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence import Behavior, BehaviorLog, Explainer, InfluenceModel, RunConfig, finetune


def tickets(cases: int = 300) -> pa.Table:
    """A process log: a ticket that was reopened is escalated."""
    draw, rows = random.Random(0), []
    for case in range(cases):
        steps = ["open", "assign", *draw.choices(["ask customer", "answer"], k=4)]
        if case % 3 == 0:
            steps[draw.randrange(2, 6)] = "reopen"
        steps.append("escalate" if "reopen" in steps else "resolve")
        time = 1_700_000_000 + 100_000 * case
        for step in steps:
            time += draw.randrange(600, 7200)
            rows.append(
                {"user_id": f"case {case}", "item_id": "ticket", "behavior": step}
                | {"timestamp": time}
            )
    return pa.Table.from_pylist(rows)


def main(folder: str = "runs/customer_service") -> float:
    """Train on tickets and explain one escalation; returns the influence of "reopen"."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(tickets(), out / "tickets.parquet")
    config = RunConfig.model_validate(
        {
            "output": str(out / "run"),
            "data": {
                "source": str(out / "tickets.parquet"),
                "split": {"kind": "global_time", "examples": "all"},
            },
            "model": {
                "backbone": "gru",
                "adapter": {"kind": "full"},
                "item_head": {"weight": 0},
                "behavior_head": {"weight": 1},
            },
            "train": {"epochs": 12, "batch_size": 8, "learning_rate": 5e-3},
        }
    )
    model = InfluenceModel.from_pretrained(finetune(config, resume=True).folder)
    history = BehaviorLog.read(out / "tickets.parquet")["case 3"]
    before = history.keep(slice(0, len(history) - 1))
    influence = Explainer(model, "shapley").explain(before, Behavior("escalate"))
    print(influence)
    steps = [event.behavior for event in before.events()]
    return float(influence.values[steps.index("reopen")])


if __name__ == "__main__":
    main(*sys.argv[1:])
