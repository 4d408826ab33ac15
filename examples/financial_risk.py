"""Which events of an account raised a fraud alarm? On generated accounts, where the truth is known.

python examples/financial_risk.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np

from llm_influence import Explainer, Feedback, Run, RunConfig, finetune


def main(folder: str = "runs/financial_risk", epochs: int = 6) -> float:
    """Train a detector and explain one alarm; returns the probability of fraud."""
    config = RunConfig.load(
        "configs/fraud.yaml", ["--output", str(Path(folder)), "--train.epochs", str(epochs)]
    )
    run = Run.open(finetune(config, resume=True).folder)
    alarms = run.examples("test", label=1)
    history, item = alarms.history(0), alarms.target_items[0]
    target = Feedback(run.split.log.catalogue.ids[int(item)].as_py(), "large_transfer")
    influence = Explainer(run.model, "shapley").explain(history, target)
    print(influence)
    strongest = [event.name for event, _ in influence.top(4)]
    print(f"P(fraud) = {influence.prediction:.2f}; strongest: {', '.join(strongest)}")
    return float(np.asarray(influence.prediction))


if __name__ == "__main__":
    main(*sys.argv[1:])
